"""How far a density is from those a functional was trained on.

Around every atom a density is described by the moments of √n with the filters of the functional,
as numbers that do not change under rotation. They are compared with those of training densities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial.distance import cdist

from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.convolution import Filters, points_to_atoms
from kineticnet_jax.nn.neighbors import Neighbors, find_neighbors
from kineticnet_jax.nn.network import usual_moments

REFERENCES = 200
"""Training densities an element is compared with."""

RESOLUTION = 1e-3
"""Differences of moments, which are of order one, that mean nothing: errors of grids are below."""

VANISHING = 1e-12
"""Square of a moment that is nothing beside `RESOLUTION`."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["whitening", "references", "unit"],
    meta_fields=["filters", "elements"],
)
@dataclass(frozen=True)
class Domain:
    """The densities a functional was trained on, as far as it takes to recognise others.

    Attributes:
        whitening: matrices that bring the descriptors of each element to unit variance.
        references: whitened descriptors that cover those of the training densities.
        unit: of each element, the largest distance from the references that a density of an
            unseen geometry of the same kind has.
        filters: of the moments.
        elements: nuclear charges.
    """

    whitening: Float[Array | np.ndarray, "*batch elements numbers numbers"]
    references: Float[Array | np.ndarray, "*batch elements count numbers"]
    unit: Float[Array | np.ndarray, "*batch elements"]
    filters: Filters
    elements: tuple[int, ...]

    @classmethod
    def empty(cls, filters: Filters, elements: tuple[int, ...]) -> "Domain":
        """Zeros in the shapes of a domain."""
        count, numbers = len(elements), sum(filters.counts)
        return cls(
            np.zeros((count, numbers, numbers), np.float32),
            np.zeros((count, REFERENCES, numbers), np.float32),
            np.zeros(count, np.float32),
            filters,
            elements,
        )

    @classmethod
    def fit(
        cls,
        filters: Filters,
        elements: tuple[int, ...],
        known: dict[int, Float[np.ndarray, "_ numbers"]],
        unseen: dict[int, Float[np.ndarray, "_ numbers"]],
    ) -> "Domain":
        """From the descriptors of the atoms of each element.

        Args:
            filters: of the moments.
            elements: nuclear charges.
            known: descriptors in the training densities.
            unseen: descriptors in densities of other geometries, which set the unit of distance.
        """
        matrices, chosen, units = [], [], []
        for z in elements:
            covariance = np.atleast_2d(np.cov(known[z], rowvar=False, bias=True))
            variances, directions = np.linalg.eigh(covariance)
            matrix = directions / np.sqrt(variances.clip(0) + RESOLUTION**2)
            references = _covering(known[z] @ matrix)
            matrices.append(matrix)
            chosen.append(references)
            units.append(np.max(cdist(unseen[z] @ matrix, references).min(axis=1)))
        whitening, covering, unit = (
            np.stack(values).astype(np.float32) for values in (matrices, chosen, units)
        )
        return cls(whitening, covering, unit, filters, elements)

    def distances(
        self, molecule: Molecule, grid: Grid, density: GridDensity
    ) -> Float[np.ndarray, "atoms"]:
        """How far the density around each atom is from the training densities.

        Args:
            molecule: charges and positions.
            grid: quadrature points and weights.
            density: on these points.

        Returns:
            Distances; those of unseen densities of the same kind are up to one.

        Raises:
            ValueError: for an element that is not among `elements`.
        """
        return np.asarray(self.measure(molecule, grid)(density))

    def measure(
        self, molecule: Molecule, grid: Grid
    ) -> Callable[[GridDensity], Float[Array, "atoms"]]:
        """`distances` of one geometry as a pure, differentiable function of the density.

        Args:
            molecule: charges and positions.
            grid: on which densities will be given.

        Raises:
            ValueError: for an element that is not among `elements`.
        """
        positions, points = np.asarray(molecule.positions), np.asarray(grid.points)
        neighbors = find_neighbors(positions, points, self.filters.cutoff)
        rows = [self.elements.index(int(z)) for z in np.asarray(molecule.charges)]
        whitening, references, unit = (
            np.asarray(array)[rows] for array in (self.whitening, self.references, self.unit)
        )

        def distances(density: GridDensity) -> Float[Array, "atoms"]:
            found = descriptors(self.filters, molecule, neighbors, grid, density)
            whitened = jnp.einsum("an,anm->am", found, whitening)
            squares = jnp.sum((references - whitened[:, None]) ** 2, axis=-1)
            return jnp.sqrt(jnp.min(squares, axis=1)) / unit

        return distances


@partial(jax.jit, static_argnums=0)
def descriptors(
    filters: Filters, molecule: Molecule, neighbors: Neighbors, grid: Grid, density: GridDensity
) -> Float[Array, "atoms numbers"]:
    """What the density looks like around every atom, seen from any direction.

    The moments ∫√n R_k0 dr and the lengths of ∫√n R_kl Y_lm dr, in units of what is usual for
    two electrons in hydrogen's 1s shell.

    Args:
        filters: R_kl.
        molecule: charges and positions.
        neighbors: blocks of points with the atoms near them.
        grid: quadrature points and weights.
        density: on these points; its gradient is not used.
    """
    positions = jnp.asarray(molecule.positions, dtype=grid.points.dtype)
    root = jnp.sqrt(jnp.maximum(density.n, 0))
    moments = points_to_atoms(
        filters, neighbors, grid.points, positions, lambda x: x[None], grid.weights * root
    )
    scales = jnp.asarray(usual_moments(filters, (1,))[0], dtype=moments.dtype)
    first, *rest = (part[..., 0] for part in filters.split(moments))
    # Differentiable where they vanish, as they do in a round atom.
    lengths = [jnp.sqrt(jnp.sum(part**2, axis=-1) + VANISHING) for part in rest]
    numbers = [part / scales[: part.shape[1]] for part in (first[..., 0], *lengths)]
    return jnp.concatenate(numbers, axis=1)


def _covering(points: Float[np.ndarray, "atoms numbers"]) -> Float[np.ndarray, "count numbers"]:
    """Points none of the others is far from: each is the one farthest from those before it."""
    chosen = [0]
    distances = np.sum((points - points[0]) ** 2, axis=1)
    for _ in range(REFERENCES - 1):
        chosen.append(int(np.argmax(distances)))
        distances = np.minimum(distances, np.sum((points - points[chosen[-1]]) ** 2, axis=1))
    return points[chosen]
