"""Molecular quadrature grids: atom-centred radial and Lebedev points with Becke's partition."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.integrate import lebedev_rule

from kineticnet_jax.errors import InputError
from kineticnet_jax.grid_tables import (
    ANGULAR_ORDERS,
    BRAGG_RADII,
    NOBLE_GASES,
    PRUNING_RADII,
    RADIAL_SIZES,
    TREUTLER_XI,
)
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.units import BOHR_IN_ANGSTROM

GRID_LEVELS = tuple(range(len(RADIAL_SIZES)))

LEBEDEV_ORDERS = (*range(3, 33, 2), *range(35, 132, 6))
"""Polynomial orders for which a Lebedev rule exists."""

POSITIVE_ORDERS = {13: 15, 25: 29, 27: 29}
"""Orders whose Lebedev rules have negative weights, and the next one whose weights are positive.

With a negative weight, the kinetic energy of a positive density can be negative."""

POINTS_AT_A_TIME = 256
"""Largest number of grid points on which functions are evaluated together: they fit the cache."""


@partial(jax.tree_util.register_dataclass, data_fields=["points", "weights"], meta_fields=[])
@dataclass(frozen=True)
class Grid:
    """Quadrature points r_g and weights w_g, ∫ f dr ≈ Σ_g w_g f(r_g).

    Padding points have weight zero.

    Attributes:
        points: coordinates in bohr, shape (points, 3); with leading axes, a batch for `jax.vmap`.
        weights: weights in bohr³, shape (points,).
    """

    points: Float[Array, "*batch points 3"]
    weights: Float[Array, "*batch points"]


@partial(jax.tree_util.register_dataclass, data_fields=["n", "grad_n"], meta_fields=[])
@dataclass(frozen=True)
class GridDensity:
    """An electron density sampled on the points of a grid.

    Attributes:
        n: density in bohr⁻³, shape (points,); with leading axes, a batch for `jax.vmap`.
        grad_n: its gradient in bohr⁻⁴, shape (points, 3).
    """

    n: Float[Array, "*batch points"]
    grad_n: Float[Array, "*batch points 3"]

    def on_grid(self, system: object) -> "GridDensity":
        """Returns itself: it is sampled already, and must be on the grid of the system."""
        del system
        return self


@dataclass(frozen=True)
class GridTemplate:
    """What of a molecular grid depends on the elements alone, on the host.

    Attributes:
        owner: index of the atom each point belongs to, shape (points,).
        offsets: points relative to their atom in bohr, shape (points, 3).
        weights: atomic quadrature weights in bohr³, shape (points,).
        size_adjustment: Becke's a_ij for unequal atoms, shape (atoms, atoms).
    """

    owner: Int[np.ndarray, "points"]
    offsets: Float[np.ndarray, "points 3"]
    weights: Float[np.ndarray, "points"]
    size_adjustment: Float[np.ndarray, "atoms atoms"]


def molecular_grid(molecule: Molecule, level: int = 3) -> Grid:
    """Quadrature grid of a molecule, differentiable with respect to the nuclear positions.

    Radial M4 rules of Treutler and Ahlrichs, Lebedev rules pruned near the nucleus and in the
    tail, and Becke's partition with Treutler's atomic-size adjustment. Levels 0 to 5 are the levels
    of the same number in PySCF, except that Lebedev rules with negative weights are replaced by
    the next larger one: no weight is negative. The number of points is padded to a bucket.

    Args:
        molecule: charges must be concrete, positions may be traced.
        level: 0 (coarse) to 5 (fine). Energies need at least 2.

    Returns:
        The grid.

    Raises:
        InputError: for an unknown level or an element above xenon.

    Reference: A. D. Becke, J. Chem. Phys. 88, 2547 (1988); O. Treutler, R. Ahlrichs,
        J. Chem. Phys. 102, 346 (1995).
    """
    template = grid_template(tuple(int(z) for z in molecule.charges), level)
    return place_grid(
        jnp.asarray(molecule.positions),
        jnp.asarray(template.owner),
        jnp.asarray(template.offsets),
        jnp.asarray(template.weights),
        jnp.asarray(template.size_adjustment),
    )


def check_level(level: int) -> None:
    """Checks the level of a grid.

    Raises:
        InputError: for an unknown one.
    """
    if level not in GRID_LEVELS:
        raise InputError(f"grid level must be 0 to {GRID_LEVELS[-1]}, but is {level}")


@cache
def grid_template(charges: tuple[int, ...], level: int) -> GridTemplate:
    """Atomic quadrature rules of all atoms, padded to a bucket with points of weight zero.

    Args:
        charges: nuclear charges.
        level: as in `molecular_grid`.

    Raises:
        InputError: for an unknown level or an element above xenon.
    """
    check_level(level)
    heaviest = len(BRAGG_RADII) - 1
    if max(charges) > heaviest:
        raise InputError(f"grids exist up to Z = {heaviest}, but an atom has Z = {max(charges)}")
    rules = [_atomic_rule(z, level) for z in charges]
    owner = np.concatenate([np.full(len(w), i) for i, (_, w) in enumerate(rules)])
    offsets = np.concatenate([points for points, _ in rules])
    weights = np.concatenate([w for _, w in rules])
    padding = bucket_size(len(weights)) - len(weights)
    # Padding repeats a real point, so that everything evaluated there is as harmless as there.
    radii = np.sqrt([BRAGG_RADII[z] for z in charges])
    ratio = radii[:, None] / radii[None]
    return GridTemplate(
        owner=np.pad(owner, (0, padding), mode="edge"),
        offsets=np.pad(offsets, ((0, padding), (0, 0)), mode="edge"),
        weights=np.pad(weights, (0, padding)),
        size_adjustment=np.clip(0.25 * (ratio.T - ratio), -0.5, 0.5),
    )


def bucket_size(points: int) -> int:
    """Smallest k 2^j ≥ points with 8 ≤ k < 16, so that padding costs at most one eighth."""
    step = 1 << max(points.bit_length() - 4, 0)
    return -(-points // step) * step


def in_blocks(
    samples: Float[Array, "points *rest"], size: int = POINTS_AT_A_TIME
) -> Float[Array, "blocks block *rest"]:
    """Splits samples on a grid into blocks, as the factors of two of `bucket_size` make possible.

    Args:
        samples: the first axis are the points.
        size: of a block at most, a power of two.
    """
    points = len(samples)
    step = min(size, 1 << max(points.bit_length() - 4, 0))
    few = points <= size
    block = points if few or points % step else step
    return samples.reshape(-1, block, *samples.shape[1:])


@jax.jit
def place_grid(
    positions: Float[Array, "atoms 3"],
    owner: Int[Array, "points"],
    offsets: Float[Array, "points 3"],
    weights: Float[Array, "points"],
    size_adjustment: Float[Array, "atoms atoms"],
) -> Grid:
    """Moves atomic rules to their nuclei and multiplies the weights by Becke's partition.

    Args:
        positions: nuclear positions in bohr.
        owner: atom of each point.
        offsets: points relative to their atom in bohr.
        weights: atomic quadrature weights in bohr³.
        size_adjustment: Becke's a_ij.

    Returns:
        The molecular grid.
    """
    points = positions[owner] + offsets

    def share(point: Float[Array, "3"], atom: Int[Array, ""]) -> Float[Array, ""]:
        cells = becke_cells(positions, size_adjustment, point)
        return cells[atom] / jnp.sum(cells)

    # The cell functions of a point need the square of the number of atoms.
    batch = max(1, min(8192, 2**20 // len(positions) ** 2))
    shares = jax.lax.map(lambda x: share(*x), (points, owner), batch_size=batch)
    return Grid(points, weights * shares)


def becke_cells(
    positions: Float[Array, "atoms 3"],
    size_adjustment: Float[Array, "atoms atoms"],
    point: Float[Array, "3"],
) -> Float[Array, "atoms"]:
    """Becke's cell functions P_i = Π_(j≠i) s(ν_ij) at one point, unnormalised.

    ν = μ + a (1 - μ²), μ_ij = (r_i - r_j) / R_ij, s = ½ [1 - p(p(p(ν)))], p(x) = (3x - x³) / 2.

    Args:
        positions: nuclear positions in bohr.
        size_adjustment: a_ij for unequal atoms.
        point: in bohr.

    Returns:
        P_i, not normalised to one.

    Reference: A. D. Becke, J. Chem. Phys. 88, 2547 (1988), equations 13 to 22 and appendix.
    """
    same = jnp.eye(len(positions), dtype=bool)
    r = jnp.linalg.norm(point - positions, axis=-1)
    separation = positions[:, None] - positions[None] + same[..., None]
    mu = (r[:, None] - r[None]) / jnp.linalg.norm(separation, axis=-1)
    nu = mu + size_adjustment * (1 - mu**2)
    for _ in range(3):
        nu = 0.5 * nu * (3 - nu**2)
    return jnp.prod(jnp.where(same, 1.0, 0.5 * (1 - nu)), axis=1)


@cache
def _atomic_rule(
    charge: int, level: int
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points"]]:
    """Points around one nucleus at the origin (bohr) and their weights (bohr³)."""
    period = int(np.searchsorted(NOBLE_GASES, charge))
    r, dr = _treutler_ahlrichs(RADIAL_SIZES[level][period], TREUTLER_XI[charge])
    orders = _pruned_orders(charge, r, ANGULAR_ORDERS[level][period])
    points, weights = [], []
    for radius, width, order in zip(r, dr, orders, strict=True):
        directions, solid_angles = _lebedev(int(order))
        points.append(radius * directions)
        weights.append(radius**2 * width * solid_angles)
    return np.concatenate(points), np.concatenate(weights)


@cache
def _lebedev(order: int) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points"]]:
    directions, solid_angles = lebedev_rule(order)
    return directions.T, solid_angles


def _treutler_ahlrichs(
    size: int, xi: float
) -> tuple[Float[np.ndarray, "radii"], Float[np.ndarray, "radii"]]:
    """M4 mapping r = -ξ/ln 2 (1+x)^0.6 ln((1-x)/2) of the Chebyshev rule of the second kind.

    Reference: O. Treutler, R. Ahlrichs, J. Chem. Phys. 102, 346 (1995), equation 19 with α = 0.6.
    """
    angle = np.arange(size, 0, -1) * np.pi / (size + 1)
    # 1 ± cos θ by half angles: the innermost radii are below 1e-6 bohr.
    plus, minus = 2 * np.cos(angle / 2) ** 2, 2 * np.sin(angle / 2) ** 2
    scale = xi / np.log(2) * plus**0.6
    logarithm = np.log(minus / 2)
    dr = np.pi / (size + 1) * np.sin(angle) * scale * (1 / minus - 0.6 / plus * logarithm)
    return -scale * logarithm, dr


def _pruned_orders(
    charge: int, r: Float[np.ndarray, "radii"], order: int
) -> Int[np.ndarray, "radii"]:
    """Lebedev order for every radius: low near the nucleus, one step lower in the tail."""
    available = np.array(LEBEDEV_ORDERS[3:])
    largest = int(np.searchsorted(available, order))
    steps = [1, 3, largest - 1, largest, largest - 1] if order > 11 else [1, 2, 2, 2, 1]
    zone_ends = PRUNING_RADII[min(int(np.searchsorted(NOBLE_GASES, charge)), 2)]
    scaled = r / (BRAGG_RADII[charge] / BOHR_IN_ANGSTROM)
    zone = np.sum(scaled[:, None] > np.array(zone_ends), axis=1)
    orders = available[np.array(steps)[zone]]
    return np.array([POSITIVE_ORDERS.get(int(order), int(order)) for order in orders])
