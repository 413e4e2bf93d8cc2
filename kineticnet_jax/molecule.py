"""The molecule: nuclear charges, positions and total charge."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from kineticnet_jax.errors import InputError
from kineticnet_jax.types import Charges, Positions
from kineticnet_jax.units import BOHR_IN_ANGSTROM

MINIMUM_DISTANCE = 0.1 / BOHR_IN_ANGSTROM
"""Nuclei closer than this (0.1 Å, in bohr) are taken for a mistake in the input."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["charges", "positions"], meta_fields=["charge"]
)
@dataclass(frozen=True)
class Molecule:
    """A closed-shell molecule in atomic units.

    Attributes:
        charges: nuclear charges, shape (atoms,).
        positions: nuclear positions in bohr, shape (atoms, 3).
        charge: total charge in units of the elementary charge.
    """

    charges: Charges
    positions: Positions
    charge: int = field(default=0)

    @classmethod
    def create(cls, symbols: list[str], positions: np.ndarray, charge: int = 0) -> "Molecule":
        """Returns a checked molecule.

        Args:
            symbols: element symbols, one for each atom.
            positions: nuclear positions in bohr, shape (atoms, 3).
            charge: total charge.

        Raises:
            InputError: for an unknown element, a position that is not finite, two nuclei closer
                than 0.1 Å, or an odd or non-positive number of electrons.
        """
        charges = np.array([_atomic_number(symbol) for symbol in symbols], dtype=np.int64)
        positions = np.array(positions, dtype=np.float64).reshape(-1, 3)
        molecule = cls(charges, positions, int(charge))
        _check(molecule)
        return molecule

    @classmethod
    def from_xyz(cls, path: str | Path, charge: int = 0) -> "Molecule":
        """Reads an xyz file (ångström); see `from_string`.

        Raises:
            InputError: if the file is missing, unreadable, not text or malformed.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: not a text file, expected xyz") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            return cls.from_string(text, charge)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_string(cls, text: str, charge: int = 0) -> "Molecule":
        """Reads the text of an xyz file: atom count, comment, then `symbol x y z` in ångström.

        Columns after the fourth are ignored, line ends may be Unix or Windows.

        Args:
            text: content of an xyz file with one frame.
            charge: total charge.

        Raises:
            InputError: naming the line that is malformed, or as in `create`.
        """
        lines = text.splitlines()
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            raise InputError("empty, expected an xyz file: atom count, comment, then the atoms")
        try:
            count = int(lines[0])
        except ValueError:
            shown = lines[0].strip()[:40]
            raise InputError(f"line 1 must be the number of atoms, but is '{shown}'") from None
        atoms = lines[2:]
        if count < 1 or len(atoms) != count:
            raise InputError(f"line 1 announces {count} atoms, but {len(atoms)} lines follow")
        symbols, positions = [], []
        for number, line in enumerate(atoms, start=3):
            words = line.split()
            try:
                positions.append([float(word) for word in words[1:4]])
            except ValueError:
                positions.append([])
            if len(positions[-1]) != 3:
                raise InputError(f"line {number} must be 'symbol x y z', but is '{line.strip()}'")
            symbols.append(words[0])
        return cls.create(symbols, np.array(positions) / BOHR_IN_ANGSTROM, charge)

    @classmethod
    def from_ase(cls, atoms: Any, charge: int = 0) -> "Molecule":
        """Converts an `ase.Atoms` (ångström) without periodic boundaries.

        Raises:
            InputError: for a periodic structure, or as in `create`.
        """
        if any(atoms.pbc):
            raise InputError("the structure is periodic; set atoms.pbc = False for a molecule")
        return cls.create(
            atoms.get_chemical_symbols(), np.asarray(atoms.positions) / BOHR_IN_ANGSTROM, charge
        )

    @classmethod
    def from_pyscf(cls, mol: Any) -> "Molecule":
        """Converts a built `pyscf.gto.Mole`; its total charge is taken over.

        Raises:
            InputError: if the molecule is not a singlet, or as in `create`.
        """
        if mol.spin != 0:
            raise InputError(
                f"only closed shells are treated, but the molecule has spin {mol.spin}"
            )
        symbols = [mol.atom_pure_symbol(i) for i in range(mol.natm)]
        return cls.create(symbols, mol.atom_coords(unit="Bohr"), mol.charge)

    @property
    def symbols(self) -> list[str]:
        """Element symbols, one for each atom."""
        return [chemical_symbols[int(number)] for number in self.charges]

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order with the total charge, such as H2O or H3+."""
        from ase.formula import Formula

        formula = Formula.from_list(self.symbols).format("hill")
        sign = "+" if self.charge > 0 else "-"
        size = "" if abs(self.charge) == 1 else str(abs(self.charge))
        return formula + (size + sign if self.charge else "")

    @property
    def n_electrons(self) -> int:
        """Number of electrons."""
        return int(np.sum(self.charges)) - self.charge

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.charges)


def _atomic_number(symbol: str) -> int:
    number = atomic_numbers.get(symbol.capitalize(), 0)
    if number < 1:
        raise InputError(f"unknown element '{symbol}'")
    return number


def _check(molecule: Molecule) -> None:
    if not np.all(np.isfinite(molecule.positions)):
        raise InputError("a nuclear position is not a finite number")
    vectors = molecule.positions[:, None] - molecule.positions[None]
    distances = np.linalg.norm(vectors, axis=-1)
    distances[np.diag_indices(len(molecule))] = np.inf
    i, j = np.unravel_index(np.argmin(distances), distances.shape)
    if distances[i, j] < MINIMUM_DISTANCE:
        distance = distances[i, j] * BOHR_IN_ANGSTROM
        raise InputError(
            f"atoms {i + 1} and {j + 1} ({molecule.symbols[i]}, {molecule.symbols[j]}) are "
            f"{distance:.3f} Å apart; at least 0.1 Å is needed"
        )
    electrons = molecule.n_electrons
    if electrons <= 0 or electrons % 2:
        neutral = Molecule(molecule.charges, molecule.positions).formula
        raise InputError(
            f"charge must leave an even, positive number of electrons, but {neutral} with "
            f"charge {molecule.charge:+d} has {electrons}"
        )
