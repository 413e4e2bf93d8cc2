"""Equivariant point convolutions between grid points and atoms.

On every atom sit filters f_klm(r) = u(r) R_kl(r) Y_lm(r/|r|). From points to atoms the convolution
is a quadrature, from atoms to points a sum over the atoms nearby; each is the transpose of the
other.

Both go through the points chunk by chunk, and compute each chunk again in the backward pass, so
that memory does not grow with the grid; each chunk is a matrix product with the filters of the
atoms near it. Filters that are used many times can be stored instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kineticnet_jax.errors import InputError
from kineticnet_jax.harmonics import solid_harmonics
from kineticnet_jax.nn.neighbors import Chunks, Neighbors
from kineticnet_jax.nn.radial import (
    gaussian_of_square,
    geometric_sequence,
    log_gaussian_basis,
    polynomial_cutoff,
)
from kineticnet_jax.types import PerPoint, Points, Positions

RadialKind = Literal["gaussian", "log-gaussian"]

Operators = tuple[Float[Array, "_ _ _ _"], ...]
"""The filters of all atoms near each block, on its points; one array (chunks, blocks, rows, size)
for each class of blocks."""

FAR_AWAY = 1e5
"""Coordinate in bohr of an atom that no point sees."""

Inputs = Any
"""A pytree of arrays whose first axis are the grid points."""


@dataclass(frozen=True)
class Filters:
    """The filters of a convolution.

    Attributes:
        counts: number of radial functions for l = 0, 1, …. Higher l take the most diffuse ones:
            close to a nucleus densities are nearly round, and angular grids are coarse.
        first: exponent of the most diffuse Gaussian in bohr⁻², or centre of the outermost shell
            in bohr.
        last: exponent of the tightest Gaussian, or centre of the innermost shell.
        cutoff: distance in bohr from which on all filters are zero.
        kind: "gaussian" (even-tempered Gaussians) or "log-gaussian" (shells).
    """

    counts: tuple[int, ...] = (18, 12, 8, 6)
    first: float = 0.04
    last: float = 2e4
    cutoff: float = 6.0
    kind: RadialKind = "gaussian"

    def check(self) -> None:
        """Finds settings no filters can be made of.

        Raises:
            InputError: naming what to change.
        """
        if not self.counts or list(self.counts) != sorted(self.counts, reverse=True):
            raise InputError(f"filter counts must not increase with l, but are {self.counts}")
        if min(self.counts) < 1:
            raise InputError(f"filter counts must be positive, but are {self.counts}")
        if not 0 < self.cutoff < math.inf:
            raise InputError(f"the cutoff must be positive and finite, but is {self.cutoff:g} bohr")
        geometric_sequence(self.first, self.last, self.counts[0])

    @property
    def scales(self) -> Float[np.ndarray, "count"]:
        """Exponents or centres, from the most diffuse to the tightest."""
        return geometric_sequence(self.first, self.last, self.counts[0])

    @property
    def rows(self) -> int:
        """Number of filters on an atom, Σ_l counts_l (2l + 1)."""
        return sum(count * (2 * l + 1) for l, count in enumerate(self.counts))

    def split(
        self, features: Float[Array, "*atoms rows channels"]
    ) -> list[Float[Array, "*atoms _ _ channels"]]:
        """Features by angular momentum, each of shape (*atoms, count_l, 2l + 1, channels)."""
        parts, start = [], 0
        for l, count in enumerate(self.counts):
            end = start + count * (2 * l + 1)
            shape = (*features.shape[:-2], count, 2 * l + 1, features.shape[-1])
            parts.append(features[..., start:end, :].reshape(shape))
            start = end
        return parts

    def join(
        self, parts: list[Float[Array, "*atoms _ _ channels"]]
    ) -> Float[Array, "*atoms rows channels"]:
        """The inverse of `split`."""
        rows = [part.reshape(*part.shape[:-3], -1, part.shape[-1]) for part in parts]
        return jnp.concatenate(rows, axis=-2)

    @property
    def row_scales(self) -> Float[np.ndarray, "rows"]:
        """Factors α_k^(l/2) that make Gaussians with r^l as large as those without; 1 if shells."""
        powers = [
            np.repeat(self.scales[:count] ** (l / 2), 2 * l + 1)
            for l, count in enumerate(self.counts)
        ]
        rows = np.concatenate(powers)
        return rows if self.kind == "gaussian" else np.ones_like(rows)

    def evaluate(self, points: Points, positions: Positions) -> Float[Array, "atoms rows points"]:
        """The filters of atoms on points, without `row_scales`.

        Args:
            points: in bohr.
            positions: nuclear positions in bohr.

        Returns:
            u(r) exp(-α_k r²) r^l Y_lm, or u(r) R_k(r) Y_lm for shells, for l = 0, 1, … in turn with
            k before m. The components m are ordered as in e3nn: x, y, z for l = 1.
        """
        vectors = points[None] - jnp.asarray(positions)[:, None]
        r2 = jnp.sum(vectors**2, axis=-1)
        scales = jnp.asarray(self.scales, dtype=r2.dtype)
        if self.kind == "gaussian":
            values = gaussian_of_square(r2, scales)
        else:
            # The square root has no derivative on a nucleus.
            r = jnp.where(r2 > 0, jnp.sqrt(jnp.where(r2 > 0, r2, 1.0)), 0.0)
            values = log_gaussian_basis(r, scales)
            vectors = vectors / jnp.where(r > 0, r, 1.0)[..., None]
        envelope = polynomial_cutoff(r2, self.cutoff**2, order=3)
        radial = envelope[:, None] * jnp.moveaxis(values, -1, 1)
        harmonics = [jnp.moveaxis(_harmonics(l, vectors), 0, 1) for l in range(len(self.counts))]
        # Without the barrier the compiler recomputes them for every product.
        radial, harmonics = jax.lax.optimization_barrier((radial, harmonics))
        products = [
            (radial[:, :count, None] * harmonics[l][:, None]).reshape(len(r2), -1, len(points))
            for l, count in enumerate(self.counts)
        ]
        return jnp.concatenate(products, axis=1)


def _harmonics(l: int, vectors: Float[Array, "atoms points 3"]) -> Float[Array, "m atoms points"]:
    """Solid harmonics r^l Y_lm in the order of e3nn, whose polar axis is y."""
    return solid_harmonics(l, vectors if l == 1 else vectors[..., jnp.array([2, 0, 1])])


@partial(jax.jit, static_argnums=0)
def build_operators(
    filters: Filters, neighbors: Neighbors, points: Points, positions: Positions
) -> Operators:
    """The filters on all points, for many convolutions on one geometry.

    Args:
        filters: which.
        neighbors: blocks of points with the atoms near them.
        points: grid points in bohr.
        positions: nuclear positions in bohr.

    Returns:
        For each class of blocks the filters of its atoms, zero where there is no atom.
    """

    def build(chunks: Chunks) -> Float[Array, "chunks blocks rows size"]:
        return jax.lax.map(
            lambda chunk: _operator(filters, points, jnp.asarray(positions), *chunk),
            (chunks.points, chunks.atoms, chunks.near),
        )

    return tuple(build(chunks) for chunks in jax.tree.map(jnp.asarray, neighbors).chunks)


def operator_bytes(filters: Filters, neighbors: Neighbors, dtype: np.typing.DTypeLike) -> int:
    """Memory that `build_operators` takes."""
    entries = sum(chunks.points.size * chunks.atoms.shape[-1] for chunks in neighbors.chunks)
    return entries * filters.rows * np.dtype(dtype).itemsize


def points_to_atoms(
    filters: Filters,
    neighbors: Neighbors,
    points: Points,
    positions: Positions,
    signal: Callable[[Inputs], Float[Array, "channels points"]],
    inputs: Inputs,
    operators: Operators | None = None,
) -> Float[Array, "atoms rows channels"]:
    """Convolution of a signal on the grid with the filters of every atom.

    F_A,klm,c = Σ_g s_gc f_klm(r_g - R_A)

    Args:
        filters: f_klm.
        neighbors: blocks of points with the atoms near them.
        points: grid points in bohr.
        positions: nuclear positions in bohr.
        signal: makes s, quadrature weights included, of the inputs of one chunk. It must vanish
            where they do.
        inputs: arrays over grid points.
        operators: from `build_operators`; without, filters are evaluated on the way.

    Returns:
        The features of every atom.
    """
    positions = jnp.asarray(positions)

    def step(
        total: Float[Array, "atoms rows channels"], chunk: tuple[Any, ...]
    ) -> tuple[Float[Array, "atoms rows channels"], None]:
        index, real, atoms, near, values, stored = chunk
        operator = stored
        if stored is None:
            operator = _operator(filters, points, positions, index, atoms, near)
        s = _by_block(signal(_flat(values)) * real.reshape(-1), len(real))
        features = jnp.einsum("brp,bcp->brc", operator, s)
        return total.at[atoms].add(features.reshape(*atoms.shape, filters.rows, -1)), None

    sample = jax.eval_shape(signal, jax.tree.map(lambda x: x[:1], inputs))
    total = jnp.zeros((len(positions), filters.rows, sample.shape[0]), dtype=sample.dtype)
    for chunks in _by_class(neighbors, inputs, operators):
        total, _ = jax.lax.scan(_frugal(step, operators), total, chunks)
    return total * jnp.asarray(filters.row_scales, dtype=total.dtype)[:, None]


def atoms_to_points(
    filters: Filters,
    neighbors: Neighbors,
    points: Points,
    positions: Positions,
    coefficients: Float[Array, "atoms rows channels"],
    read: Callable[[Float[Array, "channels points"], Inputs], PerPoint],
    inputs: Inputs,
    operators: Operators | None = None,
) -> PerPoint:
    """A function of the field that the filters of all atoms make at every point.

    h_gc = Σ_A Σ_klm f_klm(r_g - R_A) F_A,klm,c,   y_g = read(h_g, inputs_g)

    Args:
        filters: f_klm.
        neighbors: blocks of points with the atoms near them.
        points: grid points in bohr.
        positions: nuclear positions in bohr.
        coefficients: F.
        read: makes y of the field and the inputs of one chunk.
        inputs: arrays over grid points.
        operators: from `build_operators`; without, filters are evaluated on the way.

    Returns:
        y.
    """
    positions = jnp.asarray(positions)
    scales = jnp.asarray(filters.row_scales, dtype=coefficients.dtype)
    coefficients = coefficients * scales[:, None]

    def step(_: None, chunk: tuple[Any, ...]) -> tuple[None, Float[Array, "blocks size"]]:
        index, real, atoms, near, values, stored = chunk
        operator = stored
        if stored is None:
            operator = _operator(filters, points, positions, index, atoms, near)
        rows = coefficients[atoms].reshape(*operator.shape[:2], -1)
        field = jnp.einsum("brc,brp->bcp", rows, operator)
        y = read(jnp.swapaxes(field, 0, 1).reshape(rows.shape[-1], -1), _flat(values))
        return None, jnp.where(real, y.reshape(real.shape), 0.0)

    total = jnp.zeros(len(points), dtype=coefficients.dtype)
    parts = zip(neighbors.chunks, _by_class(neighbors, inputs, operators), strict=True)
    for chunks, stacked in parts:
        _, values = jax.lax.scan(_frugal(step, operators), None, stacked)
        total = total.at[jnp.asarray(chunks.points)].add(values)
    return total


def _frugal(step: Callable[..., Any], operators: Operators | None) -> Callable[..., Any]:
    """The step of a scan, computed again in the backward pass unless filters are stored anyway."""
    return step if operators is not None else jax.checkpoint(step, prevent_cse=False)


def _operator(
    filters: Filters,
    points: Points,
    positions: Float[Array, "atoms 3"],
    index: Int[Array, "blocks size"],
    atoms: Int[Array, "blocks places"],
    near: Bool[Array, "blocks places"],
) -> Float[Array, "blocks rows size"]:
    """The filters of the atoms near each block of a chunk, on its points."""
    # Places without an atom go where all filters are zero.
    sites = jnp.where(near[..., None], positions[atoms], FAR_AWAY)
    values = jax.vmap(filters.evaluate)(points[index], sites)
    return values.reshape(len(index), -1, index.shape[1])


def _flat(inputs: Inputs) -> Inputs:
    """Inputs of the points of all blocks of a chunk."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)


def _by_block(
    signal: Float[Array, "channels points"], blocks: int
) -> Float[Array, "blocks channels size"]:
    return jnp.swapaxes(signal.reshape(len(signal), blocks, -1), 0, 1)


def _by_class(
    neighbors: Neighbors, inputs: Inputs, operators: Operators | None
) -> list[tuple[Any, ...]]:
    """What a scan over the chunks of each class needs."""
    stacked = []
    for i, chunks in enumerate(neighbors.chunks):
        arrays = jax.tree.map(jnp.asarray, chunks)
        values = jax.tree.map(lambda x, index=arrays.points: x[index], inputs)
        stored = None if operators is None else operators[i]
        stacked.append((arrays.points, arrays.real, arrays.atoms, arrays.near, values, stored))
    return stacked
