"""Groups of samples: some geometries of one family with some densities each, as a pytree of arrays.

All densities of a geometry share its grid, its functions and the filters of the network, which are
therefore evaluated once for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kineticnet_jax.basis import Basis
from kineticnet_jax.data.config import Limits, PotentialKind
from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.labels import KohnShamPotential, ground_state_labels, violations
from kineticnet_jax.data.potentials import draw_perturbation
from kineticnet_jax.data.spaces import FunctionSpace, OneElectronSpace, amplitude, sample_orbitals
from kineticnet_jax.data.store import GeometryRecord
from kineticnet_jax.grid import Grid, GridDensity, grid_template, place_grid
from kineticnet_jax.types import Charges


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["orbitals", "kinetic_energy", "sqrt_coefficients", "potential_gradient"],
    meta_fields=[],
)
@dataclass(frozen=True)
class StoredLabels:
    """Ground states of a data set.

    Attributes:
        orbitals: occupied orbitals of every sample.
        kinetic_energy: T_s in hartree.
        sqrt_coefficients: x of √n in orthonormal functions.
        potential_gradient: derivative of T_s along 2√n u_k in hartree; NaN where there is none.
    """

    orbitals: Float[Array, "*batch functions occupied"]
    kinetic_energy: Float[Array, "*batch"]
    sqrt_coefficients: Float[Array, "*batch density_functions"]
    potential_gradient: Float[Array, "*batch density_functions"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["potential", "grid", "seeds"],
    meta_fields=["mixture", "limits"],
)
@dataclass(frozen=True)
class FreshLabels:
    """Ground states that are still to be computed, in new random potentials.

    Attributes:
        potential: Kohn-Sham potentials of the geometries.
        grid: on which these potentials are known.
        seeds: one for each sample.
        mixture: what the external potentials are drawn from.
        limits: what a sample must satisfy to count.
    """

    potential: KohnShamPotential
    grid: Grid
    seeds: Int[Array, "*batch"]
    mixture: tuple[PotentialKind, ...]
    limits: Limits


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["density", "tau", "psi", "grad_psi", "energy", "x", "gradient", "real"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Targets:
    """Densities with everything that is known about their kinetic energy; leading axes are samples.

    Attributes:
        density: on the grid.
        tau: kinetic energy density in hartree/bohr³.
        psi: √n on the grid; of one orbital, with its sign.
        grad_psi: its gradient.
        energy: T_s in hartree.
        x: coefficients of √n in orthonormal functions.
        gradient: derivative of T_s along 2√n u_k in hartree; NaN where there is none.
        real: whether the sample counts.
    """

    density: GridDensity
    tau: Float[Array, "*batch points"]
    psi: Float[Array, "*batch points"]
    grad_psi: Float[Array, "*batch points 3"]
    energy: Float[Array, "*batch"]
    x: Float[Array, "*batch functions"]
    gradient: Float[Array, "*batch functions"]
    real: Bool[Array, "*batch"]


_SHARED = ("charges", "orbital_basis", "density_basis")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "charges",
        "orbital_basis",
        "density_basis",
        "positions",
        "points",
        "weights",
        "orbital_transform",
        "orbital_kinetic_eigenvalues",
        "density_transform",
        "density_kinetic_eigenvalues",
        "kinetic",
        "attraction",
        "labels",
    ],
    meta_fields=["n_electrons"],
)
@dataclass(frozen=True)
class Group:
    """Some geometries of one family with some samples each; the first three arrays are shared.

    Attributes:
        charges: nuclear charges.
        orbital_basis: functions of the orbitals.
        density_basis: functions of √n.
        positions: nuclear positions in bohr.
        points: grid points in bohr.
        weights: quadrature weights in bohr³.
        orbital_transform: see `FunctionSpace`.
        orbital_kinetic_eigenvalues: see `FunctionSpace`.
        density_transform: see `FunctionSpace`.
        density_kinetic_eigenvalues: see `FunctionSpace`.
        kinetic: T_μν in hartree.
        attraction: ⟨χ_μ| 1 / |r - R_A| |χ_ν⟩.
        labels: of the samples, stored or fresh.
        n_electrons: number of electrons.
    """

    charges: Charges
    orbital_basis: Basis
    density_basis: Basis
    positions: Float[Array, "*batch atoms 3"]
    points: Float[Array, "*batch points 3"]
    weights: Float[Array, "*batch points"]
    orbital_transform: Float[Array, "*batch functions functions"]
    orbital_kinetic_eigenvalues: Float[Array, "*batch functions"]
    density_transform: Float[Array, "*batch density_functions density_functions"]
    density_kinetic_eigenvalues: Float[Array, "*batch density_functions"]
    kinetic: Float[Array, "*batch functions functions"]
    attraction: Float[Array, "*batch atoms functions functions"]
    labels: StoredLabels | FreshLabels
    n_electrons: int

    def map_axes(self, shared: Any, batched: Any) -> "Group":
        """The same tree with one value for shared arrays and one for those of each geometry."""
        values = {
            name: jax.tree.map(lambda _, value=value: value, getattr(self, name))
            for name, value in self._fields(shared, batched)
        }
        return Group(**values, n_electrons=self.n_electrons)

    def _fields(self, shared: Any, batched: Any) -> list[tuple[str, Any]]:
        names = [field.name for field in fields(self) if field.name != "n_electrons"]
        return [(name, shared if name in _SHARED else batched) for name in names]

    @property
    def space(self) -> OneElectronSpace:
        """The arrays of one geometry, inside `jax.vmap`."""
        return OneElectronSpace(
            self.charges,
            self.positions,
            Grid(self.points, self.weights),
            FunctionSpace(
                self.orbital_basis, self.orbital_transform, self.orbital_kinetic_eigenvalues
            ),
            FunctionSpace(
                self.density_basis, self.density_transform, self.density_kinetic_eigenvalues
            ),
            self.kinetic,
            self.attraction,
            self.n_electrons,
        )

    def targets(self) -> Targets:
        """All samples of one geometry, inside `jax.vmap`."""
        labels, real = self.labels, jnp.ones(len(jax.tree.leaves(self.labels)[-1]), bool)
        if isinstance(labels, FreshLabels):
            labels, real = jax.vmap(partial(_draw, self.space, labels))(labels.seeds)
        return jax.vmap(partial(_on_grid, self.space))(labels, real)


def over_geometries(
    function: Callable[[Any, Group], tuple[Any, Any]], start: Any, group: Group
) -> tuple[Any, Any]:
    """`jax.lax.scan` over the geometries of a group."""
    batched: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for name, is_shared in group._fields(True, False):
        (shared if is_shared else batched)[name] = getattr(group, name)

    def body(carry: Any, part: dict[str, Any]) -> tuple[Any, Any]:
        return function(carry, Group(**shared, **part, n_electrons=group.n_electrons))

    return jax.lax.scan(body, start, batched)


def _on_grid(space: OneElectronSpace, labels: StoredLabels, real: Bool[Array, ""]) -> Targets:
    n, grad_n, tau = sample_orbitals(space, jnp.asarray(labels.orbitals))
    density = GridDensity(n, grad_n)
    psi, grad_psi = amplitude(space, jnp.asarray(labels.orbitals), density)
    return Targets(
        density,
        tau,
        psi,
        grad_psi,
        jnp.asarray(labels.kinetic_energy),
        jnp.asarray(labels.sqrt_coefficients),
        jnp.asarray(labels.potential_gradient),
        real,
    )


def _draw(
    space: OneElectronSpace, fresh: FreshLabels, seed: Array
) -> tuple[StoredLabels, Bool[Array, ""]]:
    """The ground state in a new potential, and whether it counts."""
    key = jax.random.key(seed, impl="threefry2x32")
    perturbation = draw_perturbation(key, fresh.mixture, space.charges, space.positions)
    labels = ground_state_labels(replace(space, grid=fresh.grid), fresh.potential, perturbation)
    violated = violations(vars(labels), fresh.limits)
    stored = StoredLabels(
        labels.orbitals[:, : space.occupied],
        labels.kinetic_energy,
        labels.sqrt_coefficients,
        labels.potential_gradient,
    )
    return stored, ~jnp.any(jnp.array(list(violated.values())))


RECORD_MEMORY = 4 << 30
"""Bytes of geometries that are kept; others are read, and uncompressed, again in every step."""

SampleWeights = dict[int, np.ndarray]
"""In proportion to these numbers samples are drawn: one array for each geometry, by its index."""


def _choose(
    random: np.random.Generator, of: np.ndarray, count: int, weights: np.ndarray | None
) -> np.ndarray:
    probability = None if weights is None else weights / weights.sum()
    return random.choice(of, count, replace=len(of) < count, p=probability)


class GroupReader:
    """Makes groups of the geometries of a data set; keeps what it has read.

    Args:
        dataset: a data set or a selection of it.
        fresh: leave the stored samples alone and draw new potentials.
    """

    def __init__(self, dataset: Dataset, fresh: bool = False):
        self.dataset, self.fresh = dataset, fresh
        self.numbers = dict(dataset.by_geometry())
        self.families = {name: dataset.select(family=name).geometries for name in dataset.families}
        self._potentials: dict[int, KohnShamPotential] = {}
        self._records: dict[int, GeometryRecord] = {}
        self._room = RECORD_MEMORY

    def choose_geometries(
        self, random: np.random.Generator, family: str, count: int, weights: SampleWeights | None
    ) -> np.ndarray:
        """Indices of some geometries of a family, none of them twice if there are enough.

        Args:
            random: where they are drawn from.
            family: its name.
            count: of geometries.
            weights: of the samples; a geometry has the sum of those of its own.
        """
        geometries = self.families[family]
        sums = None if weights is None else np.array([weights[g].sum() for g in geometries])
        return _choose(random, np.array(geometries), count, sums)

    def choose_samples(
        self, random: np.random.Generator, geometry: int, count: int, weights: SampleWeights | None
    ) -> np.ndarray:
        """Numbers of some samples of a geometry, none of them twice if there are enough.

        Args:
            random: where they are drawn from.
            geometry: its index.
            count: of samples.
            weights: of the samples.
        """
        own = None if weights is None else weights[geometry]
        return _choose(random, np.array(self.numbers[geometry]), count, own)

    def read(
        self,
        geometries: Sequence[int],
        samples: np.ndarray,
        stretch: Float[np.ndarray, "geometries"] | None = None,
        grid_level: int | None = None,
    ) -> Group:
        """A group.

        Args:
            geometries: indices of geometries of one family.
            samples: numbers of samples of each geometry, or seeds of fresh ones, as an array
                (geometries, samples).
            stretch: factors by which the distances of grid points from their atoms are multiplied,
                one for each geometry.
            grid_level: of the grids; by default that of the data set.
        """
        with jax.enable_x64(True):
            return self._read(geometries, samples, stretch, grid_level)

    def _read(
        self,
        geometries: Sequence[int],
        samples: np.ndarray,
        stretch: np.ndarray | None,
        grid_level: int | None,
    ) -> Group:
        records = [self._record(int(g)) for g in geometries]
        family = self.dataset.family(records[0].family)

        def stack(name: str) -> Array:
            return jnp.asarray(np.stack([getattr(record, name) for record in records]))

        positions = stack("positions")
        stored = Grid(positions[:, family.grid_owner] + family.grid_offsets, stack("grid_weights"))
        grid = stored
        if stretch is not None or grid_level is not None:
            charges = tuple(int(z) for z in family.charges)
            factors = np.ones(len(positions)) if stretch is None else stretch
            level = self.dataset.config.grid_level if grid_level is None else grid_level
            grid = stretched_grids(charges, level, positions, jnp.asarray(factors))
        return Group(
            family.charges,
            family.orbital_basis,
            family.density_basis,
            positions,
            grid.points,
            grid.weights,
            stack("orbital_transform"),
            stack("orbital_kinetic_eigenvalues"),
            stack("density_transform"),
            stack("density_kinetic_eigenvalues"),
            stack("kinetic"),
            stack("attraction"),
            self._fresh(geometries, samples, stored) if self.fresh else _stored(records, samples),
            family.n_electrons,
        )

    def _record(self, geometry: int) -> GeometryRecord:
        """A geometry with its occupied orbitals only, which are few: so more of them are kept."""
        if geometry in self._records:
            return self._records[geometry]
        record = self.dataset.record(geometry)
        occupied = self.dataset.family(record.family).n_electrons // 2
        record = replace(record, orbitals=record.orbitals[..., :occupied].copy())
        size = sum(np.asarray(value).nbytes for value in vars(record).values())
        if size <= self._room:
            self._records[geometry] = record
            self._room -= size
        return record

    def _fresh(self, geometries: Sequence[int], seeds: np.ndarray, grid: Grid) -> FreshLabels:
        for geometry in geometries:
            if geometry not in self._potentials:
                self._potentials[geometry] = self.dataset.potential(int(geometry))
        potentials = [self._potentials[geometry] for geometry in geometries]
        config = self.dataset.config
        return FreshLabels(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *potentials),
            grid,
            jnp.asarray(seeds),
            config.potentials,
            config.limits,
        )


@partial(jax.jit, static_argnames=("charges", "level"))
def stretched_grids(
    charges: tuple[int, ...],
    level: int,
    positions: Float[Array, "geometries atoms 3"],
    factors: Float[Array, "geometries"],
) -> Grid:
    """Grids whose points are closer to their atoms or farther away, as good as the usual ones.

    Args:
        charges: nuclear charges.
        level: as in `molecular_grid`.
        positions: nuclear positions in bohr.
        factors: by which the distances of points from their atoms are multiplied.

    Returns:
        Grids with a leading axis.
    """
    rule = grid_template(charges, level)

    def stretched(positions: Float[Array, "atoms 3"], factor: Float[Array, ""]) -> Grid:
        offsets, weights = factor * rule.offsets, factor**3 * rule.weights
        owner, adjustment = jnp.asarray(rule.owner), jnp.asarray(rule.size_adjustment)
        return place_grid(positions, owner, offsets, weights, adjustment)

    return jax.vmap(stretched)(positions, factors)


def _stored(records: list[GeometryRecord], samples: np.ndarray) -> StoredLabels:
    def stack(name: str) -> Array:
        pairs = zip(records, samples, strict=True)
        return jnp.asarray(np.stack([getattr(record, name)[numbers] for record, numbers in pairs]))

    return StoredLabels(
        stack("orbitals"),
        stack("kinetic_energy"),
        stack("sqrt_coefficients"),
        stack("potential_gradient"),
    )
