"""Matrix elements between Gaussian functions, computed once by PySCF on the host."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from pyscf import gto
from scipy.linalg import eigh

OVERLAP_THRESHOLD = 1e-7
"""Combinations of normalised functions with an overlap eigenvalue below this are dropped."""

COULOMB_THRESHOLD = 1e-12
"""The same for the Coulomb metric of the auxiliary functions, scaled to a unit diagonal."""


@dataclass(frozen=True)
class OverlapAndKinetic:
    """Overlap, kinetic energy, and the orthonormal functions that diagonalise the latter.

    Attributes:
        overlap: S_μν, shape (functions, functions).
        kinetic: T_μν = ⟨χ_μ|-½∇²|χ_ν⟩ in hartree.
        transform: columns U with UᵀSU = 1 and UᵀTU diagonal; columns of dropped combinations are
            zero and stand last, so that the shape depends on the number of functions alone.
        kinetic_eigenvalues: diagonal of UᵀTU in hartree, zero for dropped combinations.
    """

    overlap: Float[np.ndarray, "functions functions"]
    kinetic: Float[np.ndarray, "functions functions"]
    transform: Float[np.ndarray, "functions functions"]
    kinetic_eigenvalues: Float[np.ndarray, "functions"]


def overlap_and_kinetic(mol: gto.Mole) -> OverlapAndKinetic:
    """Overlap and kinetic energy matrices of a basis, canonically orthogonalised."""
    overlap, kinetic = mol.intor("int1e_ovlp"), mol.intor("int1e_kin")
    eigenvalues, vectors = eigh(overlap)
    kept = eigenvalues > OVERLAP_THRESHOLD
    orthonormal = vectors[:, kept] / np.sqrt(eigenvalues[kept])
    energies, rotation = eigh(orthonormal.T @ kinetic @ orthonormal)
    dropped = len(kept) - len(energies)
    return OverlapAndKinetic(
        overlap,
        kinetic,
        np.pad(orthonormal @ rotation, ((0, 0), (0, dropped))),
        np.pad(energies, (0, dropped)),
    )


def cross_overlap(
    first: gto.Mole, second: gto.Mole
) -> Float[np.ndarray, "first_functions second_functions"]:
    """⟨χ_μ|η_ν⟩ of the functions of two bases."""
    return gto.intor_cross("int1e_ovlp", first, second)


@dataclass(frozen=True)
class MatrixSlopes:
    """How matrices between functions change when the functions move.

    Attributes:
        matrices: ⟨∇χ_μ|O|χ_ν⟩ of each operator, shape (operators, 3, functions, functions).
        owner: atom on which each function is centred.
    """

    matrices: Float[np.ndarray, "operators 3 functions functions"]
    owner: Int[np.ndarray, "functions"]


def matrix_slopes(mol: gto.Mole, integrals: tuple[str, ...]) -> MatrixSlopes:
    """Derivatives of matrices by the centre of their first function, by PySCF's names.

    Args:
        mol: the molecule with its basis.
        integrals: such as "int1e_ipovlp", "int1e_ipkin" or "int2c2e_ip1".
    """
    matrices = np.stack([mol.intor(name, comp=3) for name in integrals])
    shells = mol.ao_labels(fmt=None)
    return MatrixSlopes(matrices, np.array([atom for atom, *_ in shells]))


def inverse_coulomb_root(auxiliary: gto.Mole) -> Float[np.ndarray, "functions functions"]:
    """J^(-1/2) of the Coulomb metric J_PQ = (P|Q), with near-dependent combinations left out.

    Returns:
        Matrix A with AᵀA = J⁻¹ on the kept space; rows of dropped combinations are zero.
    """
    metric = auxiliary.intor("int2c2e")
    scale = 1 / np.sqrt(np.diag(metric))
    eigenvalues, vectors = eigh(scale[:, None] * metric * scale)
    kept = eigenvalues > COULOMB_THRESHOLD * eigenvalues[-1]
    factors = np.where(kept, 1 / np.sqrt(np.where(kept, eigenvalues, 1.0)), 0.0)
    return factors[:, None] * (scale[:, None] * vectors).T


def nuclear_attraction_matrices(mol: gto.Mole) -> Float[np.ndarray, "atoms functions functions"]:
    """⟨χ_μ| 1 / |r - R_A| |χ_ν⟩ for every nucleus A, in hartree per elementary charge."""
    matrices = []
    for atom in range(mol.natm):
        with mol.with_rinv_at_nucleus(atom):
            matrices.append(mol.intor("int1e_rinv"))
    return np.stack(matrices)
