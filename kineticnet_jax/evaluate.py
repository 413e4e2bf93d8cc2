"""Errors of a functional at the densities of a data set, and after optimizing densities on it."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.curvature import lowest_curvatures
from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.spaces import (
    OneElectronSpace,
    amplitude,
    potential_sources,
    project_on_functions,
    residual_energy,
    sample_orbitals,
)
from kineticnet_jax.data.store import GeometryRecord
from kineticnet_jax.density import (
    OrbitalDensity,
    SqrtDensity,
    fit_sqrt_density,
    initial_density,
)
from kineticnet_jax.energy import total_energy
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.base import (
    Functional,
    LocalFunctional,
    SplitFunctional,
    bind_functional,
)
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.grid import Grid, GridDensity, molecular_grid
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Solution, optimize_density
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import System, prepare
from kineticnet_jax.types import PerPoint, Scalar


@dataclass(frozen=True)
class SampleErrors:
    """Errors at fixed densities, one entry for each sample.

    Attributes:
        family: name of the molecule family.
        geometry: index of the geometry in the data set.
        number: of the sample in its geometry.
        energy: T_s[n] minus the label in hartree.
        potential: error of δT_s/δn as the energy in hartree that an optimizer would wrongly gain,
            see `residual_energy`; NaN where there is no label.
        tau: ∫|τ - label| dr in hartree; NaN for a functional without kinetic energy density.
        label: T_s in hartree.
        ground_state: T_s of the ground state of the same nuclei without external potential.
    """

    family: np.ndarray
    geometry: np.ndarray
    number: np.ndarray
    energy: Float[np.ndarray, "samples"]
    potential: Float[np.ndarray, "samples"]
    tau: Float[np.ndarray, "samples"]
    label: Float[np.ndarray, "samples"]
    ground_state: Float[np.ndarray, "samples"]


def sample_errors(
    functional: Functional, dataset: Dataset, callback: Callable[[int], None] | None = None
) -> SampleErrors:
    """Errors of kinetic energy and potential at the exact densities of a data set, in float64.

    Args:
        functional: any kinetic energy functional.
        dataset: a data set or a selection of it.
        callback: called with the number of samples done.

    Raises:
        InputError: for an element the functional cannot be used for.
    """
    rows: list[tuple[str, int, int, float, float, float, float, float]] = []
    with jax.enable_x64(True):
        for geometry, numbers, record in _family_by_family(dataset):
            space = dataset.space(geometry)
            molecule = Molecule(np.asarray(space.charges), record.positions)
            bound = bind_functional(functional, molecule, space.grid, many=False)
            for number in numbers:
                occupied = jnp.asarray(record.orbitals[number][:, : space.occupied])
                density, tau = dataset.density(geometry, number)
                x = jnp.asarray(record.sqrt_coefficients[number])
                label = float(record.kinetic_energy[number])
                energy, gradient = _energy_and_gradient(bound, space, occupied, density, x)
                residual = gradient - record.potential_gradient[number]
                rows.append(
                    (
                        record.family,
                        geometry,
                        number,
                        float(energy) - label,
                        float(residual_energy(residual, space.density.kinetic_eigenvalues)),
                        _tau_error(bound, molecule, space.grid, density, tau),
                        label,
                        float(record.kinetic_energy[0]),
                    )
                )
                if callback is not None:
                    callback(len(rows))
    return SampleErrors(*(np.array(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class GridErrors:
    """Errors of the same densities on several grids, one entry for each density and grid.

    Attributes:
        family: name of the molecule family.
        geometry: index of the geometry in the data set.
        level: of the grid.
        energy: T_s[n] minus the label in hartree.
    """

    family: np.ndarray
    geometry: np.ndarray
    level: np.ndarray
    energy: Float[np.ndarray, "entries"]


def grid_errors(
    functional: Functional, dataset: Dataset, levels: tuple[int, ...] = (1, 2, 3)
) -> GridErrors:
    """Errors of the kinetic energy on several grids, which tell whether it depends on the grid.

    Args:
        functional: any kinetic energy functional.
        dataset: a data set or a selection of it; the first sample of every geometry is used, in a
            whole data set its ground state.
        levels: of the grids.

    Raises:
        InputError: for an element the functional cannot be used for, or an unknown level.
    """
    rows: list[tuple[str, int, int, float]] = []
    with jax.enable_x64(True):
        for geometry, numbers, record in _family_by_family(dataset):
            space = dataset.space(geometry)
            molecule = Molecule(np.asarray(space.charges), record.positions)
            occupied = jnp.asarray(record.orbitals[numbers[0]][:, : space.occupied])
            for level in levels:
                there = replace(space, grid=molecular_grid(molecule, level))
                bound = bind_functional(functional, molecule, there.grid, many=False)
                energy = float(_energy_of_orbitals(bound, there, occupied))
                error = energy - float(record.kinetic_energy[numbers[0]])
                rows.append((record.family, geometry, level, error))
    return GridErrors(*(np.array(column) for column in zip(*rows, strict=True)))


@jax.jit
def _energy_of_orbitals(
    functional: Functional, space: OneElectronSpace, occupied: Float[Array, "functions occupied"]
) -> Scalar:
    n, grad_n, _ = sample_orbitals(space, occupied)
    molecule = Molecule(space.charges, space.positions)
    return functional(molecule, space.grid, GridDensity(n, grad_n))


def _family_by_family(dataset: Dataset) -> Iterator[tuple[int, list[int], GeometryRecord]]:
    """Geometries with their samples and records; a new family begins without compiled programs.

    Those of another one are of no use for its shapes, and a process may have 65,530 memory mappings
    on Linux, of which those of five families and functionals would take more.
    """
    family = None
    for geometry, numbers in dataset.by_geometry():
        record = dataset.record(geometry)
        if family not in (None, record.family):
            jax.clear_caches()
        family = record.family
        yield geometry, numbers, record


def _tau_error(
    functional: Functional, molecule: Molecule, grid: Grid, density: GridDensity, tau: PerPoint
) -> float:
    if not isinstance(functional, LocalFunctional):
        return float("nan")
    try:
        return float(_tau_difference(functional, molecule, grid, density, tau))
    except InputError:
        return float("nan")


@jax.jit
def _tau_difference(
    functional: LocalFunctional,
    molecule: Molecule,
    grid: Grid,
    density: GridDensity,
    tau: PerPoint,
) -> Scalar:
    found = functional.kinetic_energy_density(molecule, grid, density)
    return integrate(grid.weights, jnp.abs(found - tau))


@jax.jit
def _energy_and_gradient(
    functional: Functional,
    space: OneElectronSpace,
    occupied: Float[Array, "functions occupied"],
    density: GridDensity,
    x: Float[Array, "functions"],
) -> tuple[Scalar, Float[Array, "functions"]]:
    """T_s and its derivative along 2ψ u_k with the direction of ψ = Σ x_k u_k taken out.

    As in density optimization, a von Weizsäcker part is derived without quadrature.
    """
    molecule = Molecule(space.charges, space.positions)
    split = functional if isinstance(functional, SplitFunctional) else None
    quadrature = functional if split is None else split.remainder
    energy, slope = jax.value_and_grad(partial(quadrature, molecule, space.grid))(density)
    psi, grad_psi = amplitude(space, occupied, density)
    action = project_on_functions(space, potential_sources(slope, psi, grad_psi)[None])[0]
    if split is not None:
        tau = von_weizsaecker(density.n, density.grad_n)
        energy += split.vw_fraction * integrate(space.grid.weights, tau)
        action += split.vw_fraction * 2 * space.density.kinetic_eigenvalues * x
    return energy, action - x * jnp.vdot(x, action) / space.n_electrons


BASELINES = ("tf", "tf+vw", "lkt", "vw")
"""Classical functionals every other one is shown beside."""

GUESSES = (("sad", 0), ("minao", 0), ("hcore", 0), *(("random", seed) for seed in range(5)))
"""Starting guesses of an optimization, with their seeds."""


@dataclass(frozen=True)
class OptimizationErrors:
    """What density optimization gives beside Kohn-Sham, one entry for each run.

    Attributes:
        family: name of the molecule family.
        geometry: index of the geometry in the data set.
        guess: name of the starting guess, with the seed of a random one.
        energy: E - E_KS in hartree.
        density: ∫|n - n_KS| dr / N.
        dipole: length of the difference of the dipole moments in e bohr.
        converged: whether the optimization converged.
        steps: number of steps.
        seconds: of the optimization from this density, beside others on the same cores; compilation
            is included where a shape is new.
    """

    family: np.ndarray
    geometry: np.ndarray
    guess: np.ndarray
    energy: Float[np.ndarray, "runs"]
    density: Float[np.ndarray, "runs"]
    dipole: Float[np.ndarray, "runs"]
    converged: np.ndarray
    steps: np.ndarray
    seconds: Float[np.ndarray, "runs"]


def optimization_errors(
    functionals: dict[str, Functional],
    dataset: Dataset,
    guesses: tuple[tuple[str, int], ...] = (("sad", 0),),
    grid_level: int = 3,
    callback: Callable[[int], None] | None = None,
) -> dict[str, OptimizationErrors]:
    """Optimizes the densities of the geometries of a data set, beside new Kohn-Sham references.

    Molecules, xc functional and basis sets are those of the data set; external potentials are left
    out.

    Args:
        functionals: by name.
        dataset: a data set or a selection of it.
        guesses: names and seeds of the starting guesses.
        grid_level: of the quadrature grid of both.
        callback: called with the number of geometries done.

    Raises:
        InputError: for an element a functional cannot be used for.
        ConvergenceError: if a reference does not converge.
    """
    from kineticnet_jax.data.generate import ground_state

    config = dataset.config
    rows: dict[str, list[tuple]] = {name: [] for name in functionals}
    with jax.enable_x64(True):
        for done, (geometry, _, record) in enumerate(_family_by_family(dataset), 1):
            molecule = dataset.molecule(geometry)
            system = prepare(molecule, config.basis, config.density_basis, grid_level)
            exact = ground_state(config, molecule, grid_level)
            density = OrbitalDensity.from_kohn_sham(exact).on_grid(system).n
            starts = [initial_density(system, guess, seed) for guess, seed in guesses]
            for name, functional in functionals.items():
                optimize = partial(_timed, system, functional, config.xc)
                # The first one compiles; one program is slow on several cores, several at once are
                # not. Starting densities are made before, as PySCF is for one thread.
                first, *others = starts
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    found = [optimize(first), *threads.map(optimize, others)]
                for (guess, seed), (solution, seconds) in zip(guesses, found, strict=True):
                    change = solution.density.on_grid(system).n - density
                    weights = system.grid.weights
                    rows[name].append(
                        (
                            record.family,
                            geometry,
                            f"{guess} {seed}" if guess == "random" else guess,
                            solution.energy - exact.energy,
                            float(integrate(weights, jnp.abs(change))) / system.n_electrons,
                            float(jnp.linalg.norm((weights * change) @ system.grid.points)),
                            solution.converged,
                            solution.steps,
                            seconds,
                        )
                    )
            if callback is not None:
                callback(done)
    return {
        name: OptimizationErrors(*(np.array(column) for column in zip(*table, strict=True)))
        for name, table in rows.items()
    }


def _timed(
    system: System, functional: Functional, xc: str, guess: SqrtDensity
) -> tuple[Solution, float]:
    """An optimization and the seconds it takes, in any thread."""
    start = time.perf_counter()
    with jax.enable_x64(True):
        solution = optimize_density(system, functional, xc, guess)
    return solution, time.perf_counter() - start


@dataclass(frozen=True)
class Curvatures:
    """Lowest curvature of the total energy at Kohn-Sham densities, one entry for each geometry.

    Attributes:
        family: name of the molecule family.
        geometry: index of the geometry in the data set.
        lowest: least eigenvalue of `energy_hessian` in hartree; where it is negative, an
            optimization leaves the density.
    """

    family: np.ndarray
    geometry: np.ndarray
    lowest: Float[np.ndarray, "geometries"]


def curvatures(
    functional: Functional, dataset: Dataset, callback: Callable[[int], None] | None = None
) -> Curvatures:
    """Whether the Kohn-Sham densities of a data set are minima of the total energy.

    Args:
        functional: any kinetic energy functional.
        dataset: a data set or a selection of it.
        callback: called with the number of geometries done.

    Raises:
        InputError: for an element the functional cannot be used for.
        ConvergenceError: if a reference does not converge.
    """
    rows: list[tuple[str, int, float]] = []
    with jax.enable_x64(True):
        for geometry, _, record in _family_by_family(dataset):
            system, density = kohn_sham_density(dataset, geometry)
            energy = total_energy(system, functional, dataset.config.xc)
            (lowest,), _ = lowest_curvatures(energy, density)
            rows.append((record.family, geometry, float(lowest)))
            if callback is not None:
                callback(len(rows))
    return Curvatures(*(np.array(column) for column in zip(*rows, strict=True)))


def kohn_sham_density(dataset: Dataset, geometry: int) -> tuple[System, SqrtDensity]:
    """A geometry of a data set on its grid, and ψ fitted to √n of its Kohn-Sham ground state.

    Args:
        dataset: a data set.
        geometry: index of the geometry.

    Raises:
        ConvergenceError: if the Kohn-Sham equations do not converge.
    """
    from kineticnet_jax.data.generate import ground_state

    config, molecule = dataset.config, dataset.molecule(geometry)
    with jax.enable_x64(True):
        system = prepare(molecule, config.basis, config.density_basis, config.grid_level)
        exact = ground_state(config, molecule)
        return system, fit_sqrt_density(system, OrbitalDensity.from_kohn_sham(exact))
