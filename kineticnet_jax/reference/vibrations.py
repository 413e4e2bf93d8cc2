"""Normal modes of a molecule, for drawing distorted geometries."""

import numpy as np
from ase.data import atomic_masses
from jaxtyping import Float
from pyscf import scf

from kineticnet_jax.errors import ConvergenceError
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.reference.basis_sets import build_mole

# k_B in hartree per kelvin and the electron masses in an atomic mass unit, CODATA 2018.
_BOLTZMANN = 3.166811563e-6
_ATOMIC_MASS = 1822.888486209

# Softer modes (300 cm⁻¹) are far from harmonic.
_LEAST_FREQUENCY = 300 / 219474.6313632


def thermal_modes(molecule: Molecule, temperature: float) -> Float[np.ndarray, "modes atoms 3"]:
    """Displacements of one classical standard deviation along each normal mode, in bohr.

    The force constants are those of Hartree-Fock/STO-3G at the given geometry, which need not be
    its minimum. A mode of frequency ω has ⟨q²⟩ = k_B T / ω².

    Args:
        molecule: the molecule.
        temperature: in kelvin.

    Returns:
        One displacement of all atoms for each mode above 300 cm⁻¹; imaginary modes are left out.

    Raises:
        ConvergenceError: if Hartree-Fock does not converge.
    """
    field = scf.RHF(build_mole(molecule, "sto-3g"))
    field.chkfile = None
    field.kernel()
    if not field.converged:
        raise ConvergenceError(f"Hartree-Fock/STO-3G of {molecule.formula} did not converge")
    force_constants = field.Hessian().kernel().transpose(0, 2, 1, 3)
    size = 3 * len(molecule)
    root_masses = np.sqrt(np.repeat(atomic_masses[molecule.charges] * _ATOMIC_MASS, 3))
    hessian = force_constants.reshape(size, size) / np.outer(root_masses, root_masses)
    internal = _internal_space(np.asarray(molecule.positions), root_masses)
    squares, modes = np.linalg.eigh(internal @ (0.5 * (hessian + hessian.T)) @ internal)
    kept = squares > _LEAST_FREQUENCY**2
    lengths = np.sqrt(_BOLTZMANN * temperature / squares[kept])
    displacements = modes[:, kept] * lengths / root_masses[:, None]
    return displacements.T.reshape(-1, len(molecule), 3)


def _internal_space(
    positions: Float[np.ndarray, "atoms 3"], root_masses: Float[np.ndarray, "coordinates"]
) -> Float[np.ndarray, "coordinates coordinates"]:
    """Projector on mass-weighted displacements without translations and rotations."""
    axes = np.eye(3)
    centre = np.average(positions, axis=0, weights=root_masses[::3] ** 2)
    turns = np.cross(axes[:, None], positions - centre)
    rigid = np.concatenate([np.broadcast_to(axes[:, None], turns.shape), turns])
    rigid = rigid.reshape(6, -1) * root_masses
    left, sizes, _ = np.linalg.svd(rigid.T, full_matrices=False)
    kept = left[:, sizes > 1e-6 * sizes[0]]
    return np.eye(len(root_masses)) - kept @ kept.T
