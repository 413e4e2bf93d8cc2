"""What a training learns from densities that optimizations on its functional visit.

No density has a lower energy than the ground state, and on the way from there to any other one it
rises. So a functional can be found wrong at a density of which nobody knows T_s, and how much it
has to be higher there at least. The direction of this way is where its potential at the ground
state, which is known, matters most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.spaces import FunctionSpace, OneElectronSpace
from kineticnet_jax.density import SqrtDensity
from kineticnet_jax.energy import TotalEnergy, total_energy
from kineticnet_jax.functionals.base import Functional, SemiLocal
from kineticnet_jax.nn.moments import MomentNetConfig, Moments, density_moments
from kineticnet_jax.nn.neighbors import all_neighbors
from kineticnet_jax.optimize import (
    Progress,
    Solution,
    density_of,
    optimize_density,
    retract,
    scaled_basis,
    variables,
)
from kineticnet_jax.system import prepare
from kineticnet_jax.train.moments import Whitening, read_parts, write_parts
from kineticnet_jax.types import Scalar

Tree = TypeVar("Tree")
Point = tuple[Scalar, Float[Array, "functions"], Moments]
OF_VISITS = ("geometry", "distance", "known")
OF_BOUNDS = ("energy", "slope", "ground_energy", "ground_slope")
FOR_EACH_L = ("moments", "change", "ground_moments", "ground_change")


CLOSEST = 1e-8
"""Least distance from the ground state, in the units of `Visits`."""


@dataclass(frozen=True)
class Place:
    """A geometry of a data set in which densities can be optimized.

    Attributes:
        family: name of the molecule family.
        geometry: its index.
        space: the geometry, with the functions of √n of `known`.
        known: everything of the total energy but what is learned.
        element: index of the element of every atom.
        z: variables of the ground state, as the functions of √n describe it, see
            `optimize_density`.
        energy: of the ground state, from orbitals, in hartree. That of its description by √n is
            higher in second order of the difference only.
        slope: derivatives of what is learned by these variables.
    """

    family: str
    geometry: int
    space: OneElectronSpace
    known: TotalEnergy
    element: np.ndarray
    z: Float[Array, "functions"]
    energy: float
    slope: Float[Array, "functions"]

    @classmethod
    def of(cls, config: MomentNetConfig, dataset: Dataset, geometry: int) -> "Place":
        """Prepares it, in float64."""
        settings, record = dataset.config, dataset.record(geometry)
        molecule, space = dataset.molecule(geometry), dataset.space(geometry)
        system = prepare(molecule, settings.basis, settings.density_basis, settings.grid_level)
        basis = system.density_basis
        # The functions of the record may be rotated against those of the system.
        functions = FunctionSpace(
            space.density.functions, basis.transform, basis.kinetic_eigenvalues
        )
        pauli = config.target == "pauli"
        x, slope = record.sqrt_coefficients[0], record.potential_gradient[0]
        if pauli:
            slope = slope - 2 * record.density_kinetic_eigenvalues * x
        coefficients = record.density_transform @ x
        known = SemiLocal("known", 1.0 if pauli else 0.0, None)
        return cls(
            record.family,
            geometry,
            replace(space, grid=system.grid, density=functions),
            total_energy(system, known, settings.xc),
            np.array([config.elements.index(int(z)) for z in molecule.charges]),
            variables(system, SqrtDensity(jnp.asarray(coefficients))),
            float(record.reference_energies[0, 0]),
            scaled_basis(system).T @ (basis.overlap @ (record.density_transform @ slope)),
        )

    def visited(
        self, functional: Functional, guess: str, stops: Sequence[int]
    ) -> Iterator[Solution]:
        """What an optimization comes by.

        Args:
            functional: T_s.
            guess: name of the starting guess.
            stops: after how many more steps a density is looked at, unless it converged before.
        """
        system, xc = self.known.system, self.known.xc
        density: str | SqrtDensity = guess
        for steps in stops:

            def arrived(progress: Progress, steps: int = steps) -> bool:
                return progress.steps >= steps

            # The same largest number of steps each time: others would be compiled again.
            solution = optimize_density(
                system, functional, xc, density, max_steps=max(stops), callback=arrived
            )
            yield solution
            if solution.converged:
                return
            density = solution.density


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "moments",
        "change",
        "energy",
        "slope",
        "ground_moments",
        "ground_change",
        "ground_energy",
        "ground_slope",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Bounds:
    """What is known of the energy on the ways to visited densities, which are the first axis.

    Attributes:
        moments: at the visited densities, whitened.
        change: their derivatives on the straight way from the ground state, whitened, per unit of
            `distance` in `Visits`.
        energy: least energy in hartree of what is learned.
        slope: least derivative of it along the change.
        ground_moments: at the ground states.
        ground_change: their derivatives where the ways begin.
        ground_energy: energies of what is learned there.
        ground_slope: derivatives of what is learned there; NaN where they are unknown.
    """

    moments: list[Any]
    change: list[Any]
    energy: Any
    slope: Any
    ground_moments: list[Any]
    ground_change: list[Any]
    ground_energy: Any
    ground_slope: Any

    def rows(self, numbers: np.ndarray) -> "Bounds":
        """Some of them."""
        return jax.tree.map(lambda leaf: leaf[numbers], self)

    def relative_to(self, energy: float) -> "Bounds":
        """The same with energies relative to another one, in hartree."""
        return replace(self, energy=self.energy - energy, ground_energy=self.ground_energy - energy)

    def in_float32(self) -> "Bounds":
        """The same in float32."""
        return jax.tree.map(lambda leaf: leaf.astype(np.float32), self)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["geometry", "distance", "known", "bounds"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Visits:
    """Densities that optimizations of a family have visited, along the first axis.

    Attributes:
        geometry: indices of geometries.
        distance: from the ground state, |Δy| in the units of `energy_hessian`: half of its square
            is the energy in hartree that rapid changes of ψ cost.
        known: energy in hartree without what is learned, relative to the ground state.
        bounds: of what is learned.
    """

    geometry: Int[np.ndarray, "visits"]
    distance: Float[np.ndarray, "visits"]
    known: Float[np.ndarray, "visits"]
    bounds: Bounds

    def write(self, path: Path) -> None:
        """Writes them to a file, completely or not at all."""
        own = {name: getattr(self, name) for name in OF_VISITS}
        write_parts(path, own | vars(self.bounds))

    @classmethod
    def read(cls, path: Path, config: MomentNetConfig) -> "Visits":
        """Those of such a file.

        Raises:
            InputError: if it is damaged.
        """
        found = read_parts(path, (*OF_VISITS, *OF_BOUNDS), FOR_EACH_L, config)
        own = {name: found.pop(name) for name in OF_VISITS}
        return cls(**own, bounds=Bounds(**found))


def joined(parts: Sequence[Tree]) -> Tree:
    """Visits or bounds one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def visits(
    config: MomentNetConfig,
    whitening: Whitening,
    place: Place,
    densities: Sequence[SqrtDensity],
    curvature: float,
) -> Visits:
    """Bounds at visited densities of a geometry.

    The energy is that of the ground state at least. Its derivative on the straight way from there
    is that of a parabola of this curvature at least; where the way begins, both are known.

    Args:
        config: which moments.
        whitening: of the moments.
        place: the geometry.
        densities: of it.
        curvature: in hartree; 1 where only T_vW counts.
    """
    along = partial(_on_the_way, config, place.known)
    rows = []
    for density in densities:
        z = variables(place.known.system, density)
        away = z * jnp.sign(jnp.vdot(place.z, z)) - place.z
        # y of `energy_hessian` is √2 z. From a density that is the ground state no way leads on.
        distance = max(float(jnp.sqrt(2.0) * jnp.linalg.norm(away)), CLOSEST)
        (ground, _, ground_moments), (_, step, ground_change) = along(place.z, away / distance)
        (known, _, moments), (slope, _, change) = along(place.z + away, away / distance)
        whitened = partial(whitening.of_changes, place.element)
        bounds = Bounds(
            whitening.of_moments(place.element, _row(moments)),
            whitened(_row(change)),
            np.array([place.energy - float(known)]),
            np.array([curvature * distance - float(slope)]),
            whitening.of_moments(place.element, _row(ground_moments)),
            whitened(_row(ground_change)),
            np.array([place.energy - float(ground)]),
            np.array([float(jnp.vdot(place.slope, step))]),
        )
        rows.append(
            Visits(
                np.array([place.geometry]),
                np.array([distance]),
                np.array([float(known - ground)]),
                bounds,
            )
        )
    return joined(rows)


def _row(moments: Moments) -> list[np.ndarray]:
    """The same with an axis of length one in front."""
    return [np.asarray(part)[None] for part in moments]


@partial(jax.jit, static_argnums=0)
def _on_the_way(
    config: MomentNetConfig,
    known: TotalEnergy,
    z: Float[Array, "functions"],
    away: Float[Array, "functions"],
) -> tuple[Point, Point]:
    """Energy, variables and moments, and their derivatives along a change of the variables."""
    system = known.system
    positions, points = system.molecule.positions, len(system.grid.points)
    neighbors = all_neighbors(len(positions), points, points)

    def at(step: Scalar) -> Point:
        moved = retract(system, z + step * away)
        density = density_of(system, moved)
        n = density.on_grid(system).n
        moments = density_moments(config, neighbors, system.grid, positions, n)
        return known(density), moved, moments

    zero = jnp.zeros((), z.dtype)
    return jax.jvp(at, (zero,), (jnp.ones_like(zero),))
