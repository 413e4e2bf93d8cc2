"""Restricted Kohn–Sham ground states and initial guesses, by PySCF on the host."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
import psutil
from jaxtyping import Float
from pyscf import dft, scf

from kineticnet_jax.basis import Basis
from kineticnet_jax.errors import ConvergenceError, unknown_name
from kineticnet_jax.grid import molecular_grid
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.reference.basis_sets import AUXILIARY, build_mole, extract_basis

PYSCF_XC = {"lda": "slater,vwn5", "pbe": "pbe,pbe", "blyp": "b88,lyp"}
"""Our exchange-correlation functionals in PySCF's notation."""

GUESSES = ("sad", "minao", "hcore", "random")
"""Starting densities: superposed atomic densities, a minimal basis, the core Hamiltonian, noise."""


@dataclass(frozen=True)
class KohnSham:
    """A converged restricted Kohn–Sham ground state.

    Attributes:
        energy: total energy in hartree.
        components: its parts in hartree: kinetic, hartree, xc, external (with the perturbation),
            nuclear.
        positions: nuclear positions in bohr, shape (atoms, 3).
        basis: the Gaussian basis of the orbitals.
        density_matrix: D_μν, shape (functions, functions); n = Σ_μν D_μν χ_μ χ_ν.
        orbitals: coefficients φ_i = Σ_μ C_μi χ_μ, shape (functions, orbitals).
        orbital_energies: ε_i in hartree, ascending.
        occupations: 2 or 0 for every orbital.
        hartree_matrix: ⟨χ_μ|v_H|χ_ν⟩ in hartree.
        xc_matrix: ⟨χ_μ|v_xc|χ_ν⟩ in hartree.
        seconds: wall time of the calculation.
    """

    energy: float
    components: dict[str, float]
    positions: Float[np.ndarray, "atoms 3"]
    basis: Basis
    density_matrix: Float[np.ndarray, "functions functions"]
    orbitals: Float[np.ndarray, "functions orbitals"]
    orbital_energies: Float[np.ndarray, "orbitals"]
    occupations: Float[np.ndarray, "orbitals"]
    hartree_matrix: Float[np.ndarray, "functions functions"]
    xc_matrix: Float[np.ndarray, "functions functions"]
    seconds: float


def kohn_sham(
    molecule: Molecule,
    xc: str = "blyp",
    basis: str = "cc-pvdz",
    grid_level: int = 3,
    tolerance: float = 1e-10,
    max_cycles: int = 100,
    perturbation: Float[np.ndarray, "functions functions"] | None = None,
    density_fit: bool = False,
) -> KohnSham:
    """Converged Kohn–Sham ground state of a molecule.

    DIIS first; if it does not converge, a second-order method from where it stopped. The
    exchange-correlation energy is integrated on our grid of the same level, so that the quadrature
    error is common to a reference and what is compared with it.

    Args:
        molecule: the molecule.
        xc: exchange-correlation functional: "lda", "pbe" or "blyp".
        basis: orbital basis, as in `build_mole`.
        grid_level: quadrature grid of the exchange-correlation energy, 0 to 5.
        tolerance: change of the total energy at convergence, in hartree.
        max_cycles: largest number of cycles of each of the two methods.
        perturbation: matrix of an external potential beside that of the nuclei, in hartree.
        density_fit: take the Coulomb potential from the density expanded in "coulomb-fit" instead
            of from exact integrals, much faster in a large basis.

    Returns:
        Energies, density and orbitals as NumPy arrays.

    Raises:
        InputError: for an unknown functional, basis or element.
        ConvergenceError: if neither method converges.
    """
    start = time.perf_counter()
    field = _field(molecule, xc, basis, grid_level, density_fit)
    mol = field.mol
    field.conv_tol, field.conv_tol_grad, field.max_cycle = tolerance, 1e-6, max_cycles
    if perturbation is not None:
        core = field.get_hcore() + perturbation
        field.get_hcore = lambda *_: core
    field.kernel()
    if not field.converged:
        second_order = field.newton()
        second_order.max_cycle = max_cycles
        second_order.kernel(field.mo_coeff, field.mo_occ)
        field = second_order
    if not field.converged:
        raise ConvergenceError(
            f"Kohn–Sham {xc}/{basis} of {molecule.formula} did not converge in {max_cycles} cycles "
            "of DIIS and as many of a second-order method; try another basis or geometry"
        )
    density_matrix = np.asarray(field.make_rdm1())
    potential = field.get_veff(mol, density_matrix)
    hartree_matrix = np.asarray(potential.vj)
    return KohnSham(
        energy=float(field.e_tot),
        components={
            "kinetic": float(np.vdot(mol.intor("int1e_kin"), density_matrix)),
            "hartree": float(potential.ecoul),
            "xc": float(potential.exc),
            "external": float(np.vdot(field.get_hcore() - mol.intor("int1e_kin"), density_matrix)),
            "nuclear": float(mol.energy_nuc()),
        },
        positions=np.asarray(molecule.positions, dtype=np.float64),
        basis=extract_basis(mol),
        density_matrix=density_matrix,
        orbitals=np.asarray(field.mo_coeff),
        orbital_energies=np.asarray(field.mo_energy),
        occupations=np.asarray(field.mo_occ),
        hartree_matrix=hartree_matrix,
        xc_matrix=np.asarray(potential) - hartree_matrix,
        seconds=time.perf_counter() - start,
    )


def potential_matrices(
    molecule: Molecule,
    xc: str,
    basis: str,
    grid_level: int,
    density_matrices: Float[np.ndarray, "densities functions functions"],
    density_fit: bool = False,
) -> Iterator[Float[np.ndarray, "2 functions functions"]]:
    """Hartree and exchange-correlation potentials of any densities in an orbital basis.

    Args:
        molecule: the molecule.
        xc: exchange-correlation functional: "lda", "pbe" or "blyp".
        basis: orbital basis, as in `build_mole`.
        grid_level: quadrature grid of the exchange-correlation energy, 0 to 5.
        density_matrices: D_μν of each density.
        density_fit: as in `kohn_sham`.

    Yields:
        ⟨χ_μ|v_H|χ_ν⟩ and ⟨χ_μ|v_xc|χ_ν⟩ in hartree.

    Raises:
        InputError: for an unknown functional, basis or element.
    """
    field = _field(molecule, xc, basis, grid_level, density_fit)
    for density_matrix in density_matrices:
        potential = field.get_veff(field.mol, density_matrix)
        hartree_matrix = np.asarray(potential.vj)
        yield np.stack([hartree_matrix, np.asarray(potential) - hartree_matrix])


def _field(
    molecule: Molecule, xc: str, basis: str, grid_level: int, density_fit: bool
) -> dft.rks.RKS:
    """A Kohn–Sham calculation on our grid."""
    if xc not in PYSCF_XC:
        raise unknown_name("xc functional", xc, PYSCF_XC)
    field = dft.RKS(build_mole(molecule, basis), xc=PYSCF_XC[xc])
    if density_fit:
        field = field.density_fit(auxbasis=build_mole(molecule, AUXILIARY).basis)
    field.grids.coords, field.grids.weights = _quadrature(molecule, grid_level)
    field.chkfile = None
    # Integrals that do not fit in these MB are computed again in every cycle; by default the
    # process, JAX included, may have 4000.
    field.max_memory = max(field.max_memory, psutil.Process().memory_info().rss / 1e6 + _room())
    return field


def _room() -> float:
    """Half of the memory that is free, in MB; workers share it."""
    return 0.5 * psutil.virtual_memory().available / 1e6


def _quadrature(
    molecule: Molecule, grid_level: int
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points"]]:
    with jax.enable_x64(True):
        grid = molecular_grid(molecule, grid_level)
        points, weights = np.asarray(grid.points), np.asarray(grid.weights)
    real = weights != 0
    return points[real], weights[real]


def guess_density_matrix(
    molecule: Molecule, basis: str, guess: str
) -> Float[np.ndarray, "functions functions"]:
    """Density matrix of a starting guess in an orbital basis.

    Args:
        molecule: the molecule.
        basis: orbital basis, as in `build_mole`.
        guess: "sad" (spherical Hartree–Fock atoms), "minao" (a projected minimal basis) or
            "hcore" (lowest orbitals of the core Hamiltonian).

    Raises:
        InputError: for an unknown basis, element or guess.
    """
    if guess == "sad":
        return _superposed_atoms(tuple(molecule.symbols), molecule.charge, basis)
    makers = {"minao": scf.hf.init_guess_by_minao, "hcore": scf.hf.init_guess_by_1e}
    if guess not in makers:
        raise unknown_name("guess", guess, GUESSES)
    return np.asarray(makers[guess](build_mole(molecule, basis)))


@cache
def _superposed_atoms(
    symbols: tuple[str, ...], charge: int, basis: str
) -> Float[np.ndarray, "functions functions"]:
    """Matrix of spherical atoms, which is the same for all geometries; read-only."""
    apart = np.arange(3 * len(symbols)).reshape(-1, 3)
    molecule = Molecule.create(list(symbols), apart.astype(float), charge)
    matrix = np.asarray(scf.hf.init_guess_by_atom(build_mole(molecule, basis)))
    matrix.setflags(write=False)
    return matrix
