"""Orbitals in Molden files, through PySCF."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pyscf.tools import molden

from kineticnet_jax.errors import InputError
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.reference.basis_sets import build_mole

HIGHEST = 4
"""Largest angular momentum the format knows."""


def mole_for_molden(molecule: Molecule, basis: str) -> Any:
    """The molecule as a PySCF object in a named basis that a Molden file can hold.

    Args:
        molecule: the molecule.
        basis: name of the basis, see `build_mole`.

    Raises:
        InputError: if the basis has functions the format does not know, beyond l = 4.
    """
    mol = build_mole(molecule, basis)
    highest = max(mol.bas_angular(i) for i in range(mol.nbas))
    if highest > HIGHEST:
        raise InputError(f"a Molden file holds l up to {HIGHEST}, but '{basis}' has l = {highest}")
    return mol


def write_molden(
    path: Path,
    molecule: Molecule,
    basis: str,
    orbitals: Float[np.ndarray, "functions orbitals"],
    occupations: Float[np.ndarray, "orbitals"],
) -> None:
    """Writes orbitals in a named basis as a Molden file.

    Args:
        path: where to write.
        molecule: the molecule.
        basis: name of the basis, see `mole_for_molden`.
        orbitals: coefficients of normalised orbitals.
        occupations: their numbers of electrons.

    Raises:
        InputError: as in `mole_for_molden`.
    """
    mol = mole_for_molden(molecule, basis)
    molden.from_mo(mol, str(path), orbitals, occ=occupations, ene=np.zeros(len(occupations)))


def read_molden(
    path: Path,
) -> tuple[Any, Float[np.ndarray, "functions orbitals"], Float[np.ndarray, "orbitals"]]:
    """Reads the orbitals of a Molden file, of both spins if it has both.

    Args:
        path: of the file.

    Returns:
        The molecule as a PySCF object, the coefficients and the occupations.

    Raises:
        InputError: if the file is missing or not such a file, or if its basis is Cartesian.
    """
    try:
        mol, _, orbitals, occupations, _, _ = molden.load(str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception:  # PySCF fails in as many ways as a file can be wrong.
        raise InputError(f"{path}: not a Molden file that PySCF can read") from None
    if orbitals is None:
        raise InputError(f"{path}: has no orbitals ([MO])")
    if mol.cart:
        raise InputError(f"{path}: has Cartesian functions; write it with spherical ones ([5D7F])")
    if isinstance(orbitals, tuple):
        orbitals, occupations = np.hstack(orbitals), np.hstack(occupations)
    return mol, np.asarray(orbitals), np.asarray(occupations)
