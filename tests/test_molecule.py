"""Molecules from files, strings, ASE and PySCF, and what is wrong with bad ones."""

import ase
import numpy as np
import pytest
from pyscf import gto

from kineticnet_jax import InputError, Molecule
from kineticnet_jax.units import BOHR_IN_ANGSTROM

WATER = "3\nwater\nO 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692\n"
WATER_POSITIONS = np.array([[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])


@pytest.mark.parametrize("text", [WATER, WATER.replace("\n", "\r\n"), WATER + "\n \n"])
def test_xyz_is_read_in_angstrom_with_any_line_ends(tmp_path, text):
    path = tmp_path / "water.xyz"
    path.write_bytes(text.encode())
    molecule = Molecule.from_xyz(path)
    assert molecule.symbols == ["O", "H", "H"]
    assert molecule.n_electrons == 10
    np.testing.assert_allclose(molecule.positions * BOHR_IN_ANGSTROM, WATER_POSITIONS, atol=1e-14)


def test_columns_after_the_coordinates_are_ignored():
    molecule = Molecule.from_string("1\n\nHe 0 0 0 0.1 0.2 0.3\n")
    assert molecule.symbols == ["He"]


def test_ase_and_pyscf_agree_with_xyz():
    expected = Molecule.from_string(WATER)
    from_ase = Molecule.from_ase(ase.Atoms("OHH", positions=WATER_POSITIONS))
    mol = gto.M(atom=list(zip("OHH", expected.positions, strict=True)), unit="Bohr", verbose=0)
    for other in (from_ase, Molecule.from_pyscf(mol)):
        np.testing.assert_array_equal(other.charges, expected.charges)
        np.testing.assert_allclose(other.positions, expected.positions, atol=1e-13)


def test_pyscf_units_and_charge_are_taken_over():
    mol = gto.M(atom="Li 0 0 0; H 0 0 1.6", charge=0, verbose=0)
    ion = gto.M(atom="He 0 0 0; H 0 0 0.77", charge=1, verbose=0)
    bond = np.linalg.norm(np.diff(Molecule.from_pyscf(mol).positions, axis=0))
    # PySCF has its own value of the bohr.
    assert bond == pytest.approx(1.6 / BOHR_IN_ANGSTROM, rel=1e-8)
    assert Molecule.from_pyscf(ion).charge == 1
    assert Molecule.from_pyscf(ion).n_electrons == 2


@pytest.mark.parametrize(
    ("text", "charge", "formula"),
    [
        (WATER, 0, "H2O"),
        ("3\n\nH 0 0 0\nH 0 0 .9\nH 0 .8 .4", 1, "H3+"),
        ("1\n\nF 0 0 0", -1, "F-"),
        ("1\n\nBe 0 0 0", 2, "Be2+"),
    ],
)
def test_formula_shows_the_charge(text, charge, formula):
    assert Molecule.from_string(text, charge).formula == formula


@pytest.mark.parametrize(
    ("text", "charge", "message"),
    [
        ("", 0, "empty"),
        ("\n\n", 0, "empty"),
        ("three\n\nH 0 0 0", 0, "line 1 must be the number of atoms, but is 'three'"),
        ("3\n\nH 0 0 0\nH 0 0 0.7", 0, "announces 3 atoms, but 2 lines follow"),
        ("1\n\nHe 0 0 0\nHe 0 0 3", 0, "announces 1 atoms, but 2 lines follow"),
        ("0\n\n", 0, "announces 0 atoms"),
        ("2\n\nH 0 0 0\nH 0 0 x", 0, "line 4 must be 'symbol x y z', but is 'H 0 0 x'"),
        ("2\n\nH 0 0 0\nH 0 0", 0, "line 4 must be"),
        ("1\n\nXx 0 0 0", 0, "unknown element 'Xx'"),
        ("1\n\nX 0 0 0", 0, "unknown element 'X'"),
        ("1\n\nHe nan 0 0", 0, "not a finite number"),
        ("2\n\nH 0 0 0\nH 0 0 0.05", 0, r"atoms 1 and 2 \(H, H\) are 0.050 Å apart"),
        (WATER, 1, r"even, positive number of electrons, but H2O with charge \+1 has 9"),
        ("1\n\nH 0 0 0", 1, r"H with charge \+1 has 0"),
        ("1\n\nH 0 0 0", 3, r"H with charge \+3 has -2"),
    ],
)
def test_bad_text_is_refused_with_a_reason(text, charge, message):
    with pytest.raises(InputError, match=message):
        Molecule.from_string(text, charge)


def test_missing_binary_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Molecule.from_xyz(tmp_path / "none.xyz")
    binary = tmp_path / "binary.xyz"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="not a text file"):
        Molecule.from_xyz(binary)
    with pytest.raises(InputError, match="cannot be read"):
        Molecule.from_xyz(tmp_path)


def test_periodic_and_open_shell_are_refused():
    with pytest.raises(InputError, match="periodic"):
        Molecule.from_ase(ase.Atoms("He", cell=[5, 5, 5], pbc=True))
    with pytest.raises(InputError, match="spin 2"):
        Molecule.from_pyscf(gto.M(atom="O 0 0 0", spin=2, verbose=0))
