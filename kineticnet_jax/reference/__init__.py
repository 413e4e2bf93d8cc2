"""PySCF, on the host and for set-up only; everything returned is a plain array.

No other part of the package imports PySCF.
"""

from threading import Lock

from kineticnet_jax.reference.basis_sets import (
    AUXILIARY,
    build_mole,
    check_basis,
    extract_basis,
    known_bases,
)
from kineticnet_jax.reference.integrals import (
    MatrixSlopes,
    cross_overlap,
    inverse_coulomb_root,
    matrix_slopes,
    nuclear_attraction_matrices,
    overlap_and_kinetic,
)
from kineticnet_jax.reference.kohn_sham import (
    GUESSES,
    KohnSham,
    guess_density_matrix,
    kohn_sham,
    potential_matrices,
)
from kineticnet_jax.reference.molden import mole_for_molden, read_molden, write_molden
from kineticnet_jax.reference.vibrations import thermal_modes

LOCK = Lock()
"""Held by threads while they use PySCF, which changes the warnings of the whole process."""

__all__ = [
    "AUXILIARY",
    "GUESSES",
    "LOCK",
    "KohnSham",
    "MatrixSlopes",
    "build_mole",
    "check_basis",
    "cross_overlap",
    "extract_basis",
    "guess_density_matrix",
    "inverse_coulomb_root",
    "known_bases",
    "kohn_sham",
    "matrix_slopes",
    "mole_for_molden",
    "nuclear_attraction_matrices",
    "overlap_and_kinetic",
    "potential_matrices",
    "read_molden",
    "thermal_modes",
    "write_molden",
]
