"""Errors of a functional at the densities of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.labels import (
    OneElectronSpace,
    amplitude,
    project_on_functions,
    residual_energy,
)
from kineticnet_jax.functionals.base import Functional, bind_functional
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.types import Scalar


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
    """

    family: np.ndarray
    geometry: np.ndarray
    number: np.ndarray
    energy: Float[np.ndarray, "samples"]
    potential: Float[np.ndarray, "samples"]


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
    families, geometries, numbers_done, energies, potentials = [], [], [], [], []
    with jax.enable_x64(True):
        for geometry, numbers in dataset.by_geometry():
            record, space = dataset.record(geometry), dataset.space(geometry)
            molecule = Molecule(np.asarray(space.charges), record.positions)
            bound = bind_functional(functional, molecule, space.grid, many=False)
            for number in numbers:
                occupied = jnp.asarray(record.orbitals[number][:, : space.occupied])
                density, _ = dataset.density(geometry, number)
                x = jnp.asarray(record.sqrt_coefficients[number])
                energy, gradient = _energy_and_gradient(bound, space, occupied, density, x)
                residual = gradient - record.potential_gradient[number]
                families.append(record.family)
                geometries.append(geometry)
                numbers_done.append(number)
                energies.append(float(energy) - record.kinetic_energy[number])
                potentials.append(
                    float(residual_energy(residual, space.density.kinetic_eigenvalues))
                )
                if callback is not None:
                    callback(len(families))
    return SampleErrors(
        *(np.array(column) for column in (families, geometries, numbers_done, energies, potentials))
    )


@jax.jit
def _energy_and_gradient(
    functional: Functional,
    space: OneElectronSpace,
    occupied: Float[Array, "functions occupied"],
    density: GridDensity,
    x: Float[Array, "functions"],
) -> tuple[Scalar, Float[Array, "functions"]]:
    """T_s and its derivative along 2ψ u_k with the direction of ψ = Σ x_k u_k taken out."""
    molecule = Molecule(space.charges, space.positions)
    energy, slope = jax.value_and_grad(partial(functional, molecule, space.grid))(density)
    psi, grad_psi = amplitude(space, occupied, density)
    value = 2 * (slope.n * psi + jnp.sum(slope.grad_n * grad_psi, axis=1))
    sources = jnp.concatenate([value[None], 2 * psi * slope.grad_n.T])
    action = project_on_functions(space, sources[None])[0]
    return energy, action - x * jnp.vdot(x, action) / space.n_electrons
