"""Matrices of functions by grid points, stored in chunks of points."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.grid import in_blocks
from kineticnet_jax.types import Points

CHUNK = 1024
"""Points of a chunk; less of them when the grid has fewer factors of two."""


@partial(jax.tree_util.register_dataclass, data_fields=["chunks"], meta_fields=["components"])
@dataclass(frozen=True)
class GridMatrix:
    """A matrix with a row for every function and a column for every sample of it on the grid.

    Products with it run at memory bandwidth. `coefficients @ matrix` and `matrix @ samples` take
    and give flat samples: if functions have several components, such as value and gradient, one
    component after the other. Sums over the grid are made in the precision of the matrix within a
    chunk, and over the chunks in float64 where JAX has it: the sum of 10⁵ terms in float32 would
    keep five digits.

    Attributes:
        chunks: values at the points of a chunk, components one after the other.
        components: of every function.
    """

    chunks: Float[Array, "chunks rows samples"]
    components: int = 1

    # So that NumPy leaves products with its arrays to this class.
    __array_ufunc__ = None

    @classmethod
    def of(
        cls,
        functions: Callable[[Points], Float[Array, "rows *components block"]],
        points: Points,
        components: int = 1,
    ) -> "GridMatrix":
        """Evaluates functions, a chunk at a time.

        Args:
            functions: their values at some points.
            points: of the grid in bohr.
            components: of every function.
        """

        def at(block: Float[Array, "block 3"]) -> Float[Array, "rows samples"]:
            values = functions(block)
            return values.reshape(len(values), -1)

        # Derivatives by positions evaluate a chunk again: its intermediate values are not kept.
        blocks = in_blocks(jnp.asarray(points), CHUNK)
        return cls(jax.lax.map(jax.checkpoint(at), blocks), components)

    @property
    def matrix(self) -> Float[Array, "rows samples"]:
        """All of it, a copy."""
        count, rows, _ = self.chunks.shape
        values = self.chunks.reshape(count, rows, self.components, -1)
        return jnp.moveaxis(values, 0, 2).reshape(rows, -1)

    def __rmatmul__(
        self, coefficients: Float[Array | np.ndarray, "rows"]
    ) -> Float[Array, "samples"]:
        """Σ_μ c_μ χ_μ on the grid, in the precision of the matrix."""
        count, rows, _ = self.chunks.shape
        # Repeated first: derivatives by them are then summed over the chunks in their precision.
        repeated = jnp.broadcast_to(coefficients, (count, rows)).astype(self.chunks.dtype)
        values = jnp.einsum("kr,krs->ks", repeated, self.chunks)
        return jnp.moveaxis(values.reshape(count, self.components, -1), 1, 0).reshape(-1)

    def __matmul__(self, samples: Float[Array | np.ndarray, "samples"]) -> Float[Array, "rows"]:
        """Σ_g χ_μ(r_g) s_g for all functions, in float64 where JAX has it."""
        count, dtype = len(self.chunks), self.chunks.dtype
        parts = jnp.moveaxis(jnp.asarray(samples).reshape(self.components, count, -1), 1, 0)
        sums = jnp.einsum("krs,ks->kr", self.chunks, parts.reshape(count, -1).astype(dtype))
        return jnp.sum(sums.astype(float), axis=0)
