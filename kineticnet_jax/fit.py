"""The closed-form reference functional from a data set: least squares in one streaming pass."""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.domain import training_domain
from kineticnet_jax.data.spaces import (
    OneElectronSpace,
    amplitude,
    density_functions,
    preconditioned_changes,
)
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.base import Target
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.functionals.learned import LearnedFunctional, Provenance
from kineticnet_jax.functionals.moments import MomentConfig, MomentGeometry, moment_features
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.config import check_elements
from kineticnet_jax.normal_equations import NormalEquations
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.types import PerPoint, Scalar

logger = logging.getLogger(__name__)

REGULARIZATIONS = tuple(10.0**k for k in range(-14, -1))
"""Ridge parameters that are tried, in units of the mean square of a feature."""

DIRECTIONS_AT_A_TIME = 128


@dataclass(frozen=True)
class FitSettings:
    """What is fitted.

    Attributes:
        potentials: whether potential labels are used beside energies.
        directions: random directions in the space of √n along which the potential of each sample
            is fitted; None for all of them.
        energy_weight: of the squared error of an energy in hartree².
        potential_weight: of the error of a potential, as an energy in hartree.
        kernel_weight: of the second derivative of the energy along random changes of the density,
            which is pulled towards zero where nothing else determines it.
        kernel_directions: number of these changes for each sample.
        regularizations: ridge parameters of which validation chooses one.
        slack: by how much the mean squared error of the validation geometries may be larger than
            the least one, relative to it; of the ridge parameters that keep to it the largest is
            chosen. More makes a functional that is smoother away from the data.
        seed: of the random directions.
    """

    potentials: bool = True
    directions: int | None = None
    energy_weight: float = 1.0
    potential_weight: float = 1.0
    kernel_weight: float = 0.0
    kernel_directions: int = 2
    regularizations: tuple[float, ...] = REGULARIZATIONS
    slack: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Finds settings that make no sense.

        Raises:
            InputError: naming what to change.
        """
        for name in ("energy_weight", "potential_weight", "kernel_weight", "slack"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise InputError(f"{name} must be zero or a positive number, but is {value:g}")
        for name in ("directions", "kernel_directions"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name} must be at least 1, but are {count}")
        if not self.regularizations or not all(0 < r < np.inf for r in self.regularizations):
            raise InputError("regularizations must be positive numbers, at least one")


@dataclass(frozen=True)
class Fit:
    """A fitted reference functional and how it came about.

    Attributes:
        functional: with its provenance.
        regularization: the one chosen.
        validation: mean squared error of the validation geometries for each that was tried, in
            the weights of the fit.
        samples: number of training samples.
        seconds: for everything.
        equations: the normal equations of the training samples.
        shift: what was taken off features and energies, for each atom of an element.
    """

    functional: LearnedFunctional
    regularization: float
    validation: Float[np.ndarray, "regularizations"]
    samples: int
    seconds: float
    equations: NormalEquations = field(repr=False)
    shift: Float[np.ndarray, "elements columns"] = field(repr=False)

    def with_rows(
        self,
        rows: Float[np.ndarray, "rows features"],
        targets: Float[np.ndarray, "rows"],
        weight: float = 1.0,
    ) -> "Fit":
        """The fit with further rows, such as second derivatives, and the same regularisation.

        Args:
            rows: derivatives of the features, from `second_derivatives`; their first columns, the
                numbers of atoms, must be zero.
            targets: what the same derivatives of T_P or T_s shall be, in hartree.
            weight: of each row.

        Raises:
            InputError: if a row has numbers of atoms in it, or is not finite.
        """
        elements = len(self.shift)
        if np.any(rows[:, :elements] != 0):
            raise InputError("rows must be derivatives: the first columns, numbers of atoms, zero")
        old = self.equations
        equations = NormalEquations(old.gram.copy(), old.projection.copy(), old.square, old.weight)
        equations.add(rows, targets, weight)
        (solution,) = equations.solve([self.regularization], free=elements)
        functional = dataclasses.replace(
            self.functional, coefficients=_unshifted(solution, self.shift)
        )
        return dataclasses.replace(self, functional=functional, equations=equations)


def second_derivatives(
    config: MomentConfig,
    molecule: Molecule,
    grid: Grid,
    path: Callable[[Scalar], GridDensity],
    geometry: MomentGeometry | None = None,
) -> Float[Array, "features"]:
    """d²Φ/dε² at ε = 0 of the features along a path of densities, as a row for `Fit.with_rows`.

    Args:
        config: the invariants Φ.
        molecule: charges and positions.
        grid: quadrature points and weights.
        path: ε to the density on the grid, such as that of ψ + ε δψ.
        geometry: from `MomentGeometry.build`; without, every atom sees every point.
    """

    def features(step: Scalar) -> Float[Array, "features"]:
        return moment_features(config, molecule, grid, path(step), geometry)

    def first(step: Scalar) -> Float[Array, "features"]:
        return jax.jvp(features, (step,), (jnp.ones_like(step),))[1]

    zero = jnp.zeros((), dtype=grid.weights.dtype)
    return jax.jvp(first, (zero,), (jnp.ones_like(zero),))[1]


def fit_moments(
    dataset: Dataset,
    config: MomentConfig | None = None,
    settings: FitSettings = FitSettings(),
    target: Target = "pauli",
    callback: Callable[[int], None] | None = None,
) -> Fit:
    """Fits the reference functional to the training split of a data set.

    The regularisation is the one with the least error on the validation split, or a larger one if
    the settings allow for it; the test split is not read. Every sample is read once; memory does
    not depend on their number.

    Args:
        dataset: with training and validation geometries.
        config: the invariants; by default those of `MomentConfig` for all elements of the data.
        settings: what is fitted.
        target: of the default invariants.
        callback: called with the number of samples done.

    Raises:
        InputError: if there are no training or validation samples, if an element of the data is
            not among those of `config`, or for settings that make no sense.
    """
    start = time.perf_counter()
    settings.check()
    parts = [dataset.select(split=split) for split in ("train", "validation")]
    for part, split in zip(parts, ("training", "validation"), strict=True):
        if len(part) == 0:
            raise InputError(f"{dataset.path}: has no {split} samples, a fit needs both")
    charges = [dataset.family(name).charges for name in dataset.families]
    if config is None:
        config = MomentConfig(tuple(sorted({int(z) for row in charges for z in row})), target)
    config.check()
    for row in charges:
        check_elements(config.elements, row)
    compositions = np.array([[np.sum(row == z) for z in config.elements] for row in charges])
    if np.linalg.matrix_rank(compositions) < len(config.elements):
        logger.warning(
            "%d elements but only %d independent compositions: the functional is meaningless for "
            "other compositions",
            len(config.elements),
            np.linalg.matrix_rank(compositions),
        )
    with jax.enable_x64(True):
        accumulator = _Accumulator(dataset, config, settings)
        done = 0
        for part, equations in zip(parts, (accumulator.train, accumulator.validation), strict=True):
            for geometry, numbers in part.by_geometry():
                accumulator.add(geometry, numbers, equations)
                done += len(numbers)
                if callback is not None:
                    callback(done)
    solutions = accumulator.train.solve(settings.regularizations, free=len(config.elements))
    errors = np.array([accumulator.validation.mean_square(c) for c in solutions])
    allowed = np.flatnonzero(errors <= (1 + settings.slack) * np.min(errors))
    best = max(allowed, key=lambda i: settings.regularizations[i])
    seconds = time.perf_counter() - start
    details = dataset.conditions(dataset.families) | {
        "training samples": str(len(parts[0])),
        "settings": repr(settings),
        "regularization": f"{settings.regularizations[best]:g}",
        "seconds": f"{seconds:.0f}",
    }
    functional = LearnedFunctional(
        moments=config,
        coefficients=_unshifted(solutions[best], accumulator.shift),
        provenance=Provenance(f"moments-{dataset.config.name}", tuple(details.items())),
        domain=training_domain(dataset, dataset.families, config.filters, config.elements),
    )
    return Fit(
        functional,
        settings.regularizations[best],
        errors,
        len(parts[0]),
        seconds,
        accumulator.train,
        accumulator.shift,
    )


def _unshifted(
    coefficients: Float[np.ndarray, "features"], shift: Float[np.ndarray, "elements columns"]
) -> Float[np.ndarray, "features"]:
    """Coefficients for features and energies that are not shifted."""
    result = coefficients.copy()
    result[: len(shift)] += shift[:, -1] - shift[:, :-1] @ coefficients
    return result


class _Accumulator:
    """Sums of the rows of all samples, shifted so that large numbers do not cancel.

    From features and energies a part linear in the numbers of atoms of each element is taken off,
    such that the first training sample of each family becomes nearly zero.
    """

    def __init__(self, dataset: Dataset, config: MomentConfig, settings: FitSettings):
        self.dataset, self.config, self.settings = dataset, config, settings
        self.train, self.validation = (NormalEquations.empty(len(config.names)) for _ in range(2))
        self._random = np.random.default_rng(settings.seed)
        first = []
        for family in dataset.families:
            geometry, numbers = next(dataset.select("train", family).by_geometry())
            first.append(
                self._energy_rows(geometry, numbers[:1], self._read(geometry, numbers[:1]))[0]
            )
        rows = np.array(first)
        counts = rows[:, : len(config.elements)]
        self.shift = np.linalg.lstsq(counts, rows, rcond=1e-12)[0]
        self.shift[:, : len(config.elements)] = 0.0

    def add(self, geometry: int, numbers: list[int], equations: NormalEquations) -> None:
        """Adds the rows of some samples of a geometry."""
        settings, sampled = self.settings, self._read(geometry, numbers)
        rows = self._energy_rows(geometry, numbers, sampled)
        rows -= rows[:, : len(self.config.elements)] @ self.shift
        equations.add(rows[:, :-1], rows[:, -1], settings.energy_weight)
        if not settings.potentials:
            return
        record, space = self.dataset.record(geometry), self.dataset.space(geometry)
        functions = _functions(space)
        for number, (density, _) in zip(numbers, sampled, strict=True):
            gradient = record.potential_gradient[number]
            if not np.all(np.isfinite(gradient)):
                continue
            sample = (
                density,
                jnp.asarray(record.orbitals[number][:, : space.occupied]),
                jnp.asarray(record.sqrt_coefficients[number]),
                jnp.asarray(gradient),
            )
            directions = self._directions(len(gradient), settings.directions)
            scaled, changes = _changes(space, sample, functions, directions)
            rows, targets = _potential_rows(self.config, space, sample, scaled, changes)
            equations.add(np.asarray(rows), np.asarray(targets), settings.potential_weight)
            if settings.kernel_weight > 0 and equations is self.train:
                directions = self._directions(len(gradient), settings.kernel_directions)
                _, changes = _changes(space, sample, functions, directions)
                kernel = np.asarray(_kernel_rows(self.config, space, density, changes))
                equations.add(kernel, np.zeros(len(kernel)), settings.kernel_weight)

    def _read(self, geometry: int, numbers: list[int]) -> list[tuple[GridDensity, PerPoint]]:
        """Densities and kinetic energy densities of samples of a geometry."""
        return [self.dataset.density(geometry, number) for number in numbers]

    def _energy_rows(
        self, geometry: int, numbers: list[int], sampled: list[tuple[GridDensity, PerPoint]]
    ) -> Float[np.ndarray, "samples columns"]:
        """Features and energies of samples of a geometry."""
        space = self.dataset.space(geometry)
        energies = self.dataset.record(geometry).kinetic_energy[numbers]
        # Filled up, so that all geometries of a family share a compiled program.
        count = self.dataset.config.potentials_per_geometry + 1
        filled = [sampled[i % len(sampled)] for i in range(count)]
        densities, taus = jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)
        features, pauli = _features(self.config, space, densities, taus)
        if self.config.target == "pauli":
            energies = np.asarray(pauli)[: len(numbers)]
        return np.column_stack([np.asarray(features)[: len(numbers)], energies])

    def _directions(
        self, functions: int, count: int | None
    ) -> Float[Array, "directions functions"]:
        if count is None:
            return jnp.eye(functions)
        return jnp.asarray(self._random.normal(size=(count, functions)) / np.sqrt(count))


_Sample = tuple[
    GridDensity,
    Float[Array, "functions occupied"],
    Float[Array, "density_functions"],
    Float[Array, "density_functions"],
]
"""Density, occupied orbitals, coefficients of √n and gradient of T_s."""

_functions = jax.jit(density_functions)


@partial(jax.jit, static_argnums=0)
def _features(
    config: MomentConfig,
    space: OneElectronSpace,
    densities: GridDensity,
    taus: Float[Array, "samples points"],
) -> tuple[Float[Array, "samples features"], Float[Array, "samples"]]:
    """Features of densities on one grid, and T_s - T_vW in hartree.

    In the difference of τ and τ_vW the quadrature errors of the cores cancel.
    """
    molecule = Molecule(space.charges, space.positions)

    def sample(density: GridDensity, tau: PerPoint) -> tuple[Float[Array, "features"], Scalar]:
        pauli = tau - von_weizsaecker(density.n, density.grad_n)
        features = moment_features(config, molecule, space.grid, density)
        return features, integrate(space.grid.weights, pauli)

    return jax.vmap(sample)(densities, taus)


@partial(jax.jit, static_argnums=0)
def _potential_rows(
    config: MomentConfig,
    space: OneElectronSpace,
    sample: _Sample,
    scaled: Float[Array, "directions density_functions"],
    changes: Float[Array, "directions points"],
) -> tuple[Float[Array, "directions features"], Float[Array, "directions"]]:
    """Derivatives of the features along changes of the density, and those of the energy."""
    density, _, x, gradient = sample
    molecule = Molecule(space.charges, space.positions)

    def derivative(change: PerPoint) -> Float[Array, "features"]:
        def features(n: PerPoint) -> Float[Array, "features"]:
            sampled = GridDensity(n, density.grad_n)
            return moment_features(config, molecule, space.grid, sampled)

        return jax.jvp(features, (density.n,), (change,))[1]

    rows = jax.lax.map(derivative, changes, batch_size=DIRECTIONS_AT_A_TIME)
    if config.target == "pauli":
        gradient -= 2 * space.density.kinetic_eigenvalues * x
    return rows, scaled @ gradient


@partial(jax.jit, static_argnums=0)
def _kernel_rows(
    config: MomentConfig,
    space: OneElectronSpace,
    density: GridDensity,
    changes: Float[Array, "directions points"],
) -> Float[Array, "directions features"]:
    """Second derivatives of the features along changes of the density."""
    molecule = Molecule(space.charges, space.positions)

    def second(change: PerPoint) -> Float[Array, "features"]:
        def path(step: Scalar) -> GridDensity:
            return GridDensity(density.n + step * change, density.grad_n)

        return second_derivatives(config, molecule, space.grid, path)

    return jax.lax.map(second, changes)


@jax.jit
def _changes(
    space: OneElectronSpace,
    sample: _Sample,
    functions: Float[Array, "points density_functions"],
    directions: Float[Array, "directions density_functions"],
) -> tuple[Float[Array, "directions density_functions"], Float[Array, "directions points"]]:
    """Changes of ψ = √n in some directions, as coefficients, and of the density on the grid."""
    density, occupied, x, _ = sample
    scaled = preconditioned_changes(space, x, directions)
    psi, _ = amplitude(space, occupied, density)
    return scaled, 2 * psi * (functions @ scaled.T).T
