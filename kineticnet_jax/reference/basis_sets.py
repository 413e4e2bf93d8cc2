"""Gaussian basis sets from PySCF's tables, even-tempered sets, and sets for density fitting."""

import math
import warnings
from functools import cache

import numpy as np
from ase.data import atomic_numbers
from pyscf import df, gto

from kineticnet_jax.basis import Basis, Shell
from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.molecule import Molecule

EVEN_TEMPERED = "even-tempered"
"""Name of the basis of √n for more than two electrons; a ratio may follow, and what hydrogen needs
next to hydrogen: "even-tempered-1.7", "even-tempered-1.7-f"."""

DEFAULT_RATIO = 2.0

AUXILIARY = "coulomb-fit"
"""Name of the auxiliary basis in which the Coulomb potential of a density is expanded."""

_SUGGESTED = ("sto-3g", "6-31g", "cc-pvdz", "cc-pvtz", "cc-pvqz", "aug-cc-pvdz", "aug-cc-pvtz",
              "def2-svp", "def2-tzvp", "def2-qzvp", "pcseg-1", "pcseg-2")  # fmt: skip

_COMMON = ("H", "C", "Na", "Fe")
"""A basis that has none of these elements does not exist."""

# Range of an even-tempered set relative to the smallest and largest exponent of cc-pVTZ, by l: sets
# that represent √n of water to 0.2 %.
_RANGE_HYDROGEN = {1: (0.5, 4.3), 2: (0.38, 2.8)}
# That of a light atom with a core, whose d and f functions in cc-pVTZ do not reach the core: with
# those of heavier ones √n of LiH is off by 0.4 % at 1.22 Å, with these by 0.13.
_RANGE_LITHIUM = {1: (0.7, 1.2), 2: (0.39, 16.0), 3: (0.35, 11.0)}
_RANGE_HELIUM = {1: (0.35, 4.3), 2: (0.2, 2.8)}
_RANGE = {1: (0.7, 1.2), 2: (0.39, 5.2), 3: (0.35, 2.8)}

# f exponents of helium, which has none in cc-pVTZ. Without them √n of two atoms 1.3 Å apart is off
# by 1 %, and its energy by 1.7 mHa instead of 0.3.
_HELIUM_F = (0.7, 5.5)

# p and f exponents of hydrogen next to hydrogen without a bond, by the suffix "-f". Without them √n
# of two H2 1.6 Å apart is off by 1.1 %, with them by 0.5. In water and methane, off by 0.13 and
# 0.11 %, f functions gain less than 0.04.
_HYDROGEN_F = {1: (0.1, 12.0), 3: (0.5, 2.0)}

# The s functions, which alone describe the cusp, end at this multiple of Z². What is missing beyond
# costs a hydrogen-like ion 0.04 mHa of kinetic energy at Z = 10; a multiple of 144 costs 8 mHa.
_CUSP_EXPONENT = 5000.0
_LOWEST_S = 0.5

# Auxiliary p, d and f functions of hydrogen. The published ones miss 0.03 mHa of stretched H2.
_AUXILIARY_HYDROGEN = {1: (0.25, 3.5), 2: (0.5, 3.0), 3: (1.0, 1.8)}


def build_mole(molecule: Molecule, basis: str) -> gto.Mole:
    """The molecule as a PySCF object with the named basis on every atom.

    Args:
        molecule: the molecule.
        basis: a name PySCF knows, with "unc-" in front for its uncontracted form;
            "even-tempered", "even-tempered-RATIO" or "even-tempered-RATIO-f", in which hydrogen has
            f functions; or "coulomb-fit".

    Returns:
        A built `Mole`, silent and without symmetry.

    Raises:
        InputError: for an unknown basis, or one that lacks an element of the molecule.
    """
    elements = sorted(set(molecule.symbols), key=molecule.symbols.index)
    table = {element: _element_basis(basis, element) for element in elements}
    return gto.M(
        atom=list(zip(molecule.symbols, np.asarray(molecule.positions).tolist(), strict=True)),
        unit="Bohr",
        basis=table,
        charge=molecule.charge,
        verbose=0,
        symmetry=False,
    )


def extract_basis(mol: gto.Mole) -> Basis:
    """The basis of a PySCF molecule as arrays, functions in PySCF's order."""
    shells = []
    for i in range(mol.nbas):
        l, exponents = int(mol.bas_angular(i)), mol.bas_exp(i)
        coefficients = mol.bas_ctr_coeff(i) * gto.gto_norm(l, exponents)[:, None]
        for column in coefficients.T:
            shell = Shell(
                int(mol.bas_atom(i)), l, tuple(exponents.tolist()), tuple(column.tolist())
            )
            shells.append(shell)
    return Basis.from_shells(shells)


def known_bases() -> tuple[str, ...]:
    """Common orbital bases; PySCF knows many more."""
    return _SUGGESTED


def check_basis(name: str) -> None:
    """Finds out whether a basis exists, for whichever elements.

    Raises:
        InputError: for an unknown basis.
    """
    for element in _COMMON:
        try:
            _element_basis(name, element)
        except InputError as error:
            problem = error
        else:
            return
    raise problem


def _element_basis(basis: str, element: str) -> list:
    name = basis.lower()
    if name == AUXILIARY:
        return _auxiliary(element)
    if name.startswith(EVEN_TEMPERED):
        return _even_tempered(element, _ratio(name.removesuffix("-f")), name.endswith("-f"))
    if name.startswith("unc-"):
        return gto.uncontract(_load(name[4:], element))
    return _load(name, element)


def _ratio(name: str) -> float:
    try:
        ratio = float(name[len(EVEN_TEMPERED) + 1 :] or DEFAULT_RATIO)
    except ValueError:
        raise unknown_name("basis", name, (*_SUGGESTED, EVEN_TEMPERED)) from None
    if not 1.2 <= ratio <= 4.0:
        raise InputError(f"the ratio of an even-tempered basis must be 1.2 to 4, but is {ratio:g}")
    return ratio


@cache
def _load(name: str, element: str) -> list:
    """An orbital basis from PySCF's tables.

    Raises:
        InputError: for an unknown basis, one that lacks the element, or one with a core potential.
    """
    shells = _lookup(name, element)
    if shells is None:
        if all(_lookup(name, other) is None for other in _COMMON):
            raise unknown_name("basis", name, (*_SUGGESTED, EVEN_TEMPERED))
        raise InputError(f"basis '{name}' has no functions for element {element}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            core_potential = gto.basis.load_ecp(name, element)
        except Exception:  # PySCF signals "no such table" by errors of several kinds.
            core_potential = None
    if core_potential:
        raise InputError(
            f"basis '{name}' replaces the core of {element} by a potential; use an all-electron one"
        )
    return shells


@cache
def _lookup(name: str, element: str) -> list | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return gto.basis.load(name, element) or None
        except Exception:  # PySCF signals "not found" by errors of several kinds.
            return None


@cache
def _exponents(element: str) -> dict[int, tuple[float, float]]:
    """Smallest and largest exponent for every l of an all-electron triple-zeta basis."""
    for name in ("cc-pvtz", "def2-tzvp", "dyall-v3z", "sto-3g"):
        if (shells := _lookup(name, element)) is not None:
            break
    else:
        raise InputError(f"there is no even-tempered basis for element {element}")
    ranges: dict[int, list[float]] = {}
    for l, *primitives in shells:
        rows = primitives[1:] if isinstance(primitives[0], int) else primitives
        ranges.setdefault(l, []).extend(row[0] for row in rows)
    return {l: (min(values), max(values)) for l, values in ranges.items()}


@cache
def _even_tempered(element: str, ratio: float, hydrogen_f: bool) -> list:
    """Uncontracted shells with exponents in geometric progression, for √n.

    Reference: R. D. Bardo, K. Ruedenberg, J. Chem. Phys. 60, 918 (1974).
    """
    charge = atomic_numbers[element]
    limits = _exponents(element)
    shells = _geometric(0, limits[0][0] * _LOWEST_S, _CUSP_EXPONENT * charge**2, ratio)
    own = {1: _RANGE_HYDROGEN, 2: _RANGE_HELIUM, 3: _RANGE_LITHIUM, 4: _RANGE_LITHIUM}
    ranges = {
        l: (limits[l][0] * low, limits[l][1] * high)
        for l, (low, high) in own.get(charge, _RANGE).items()
        if l in limits
    }
    if charge == 1 and hydrogen_f:
        ranges |= _HYDROGEN_F
    if charge == 2:
        ranges[3] = _HELIUM_F
    for l, (low, high) in ranges.items():
        shells += _geometric(l, low, high, ratio)
    return shells


@cache
def _auxiliary(element: str) -> list:
    """Shells for the fit of a Coulomb potential.

    cc-pVTZ-JKFIT where it exists, else products of cc-pVTZ as PySCF makes them, with the s
    functions replaced by a dense even-tempered row up to twice the largest orbital exponent: the
    published ones fit the cores they were made for, and lose 0.05 mHa for neon in cc-pVDZ.
    Hydrogen has rows of its own for the other angular momenta too.

    Reference: F. Weigend, Phys. Chem. Chem. Phys. 4, 4285 (2002).
    """
    shells = _lookup("cc-pvtz-jkfit", element)
    if shells is None and _lookup("cc-pvtz", element) is not None:
        atom = gto.M(atom=f"{element} 0 0 0", basis="cc-pvtz", spin=None, verbose=0)
        shells = df.aug_etb(atom, 1.8)[element]
    if shells is None:
        shells = _lookup("def2-universal-jkfit", element)
    if shells is None:
        raise InputError(f"there is no density-fitting basis for element {element}")
    if element == "H":
        shells = [shell for shell in shells if shell[0] == 0]
        for l, (low, high) in _AUXILIARY_HYDROGEN.items():
            shells += _geometric(l, low, high, 2.2)
    s_exponents = [row[0] for l, *rows in shells if l == 0 for row in rows]
    highest = max(2 * _exponents(element)[0][1], *s_exponents)
    return [shell for shell in shells if shell[0] > 0] + _geometric(
        0, min(s_exponents), highest, 1.8
    )


def _geometric(l: int, low: float, high: float, ratio: float) -> list:
    """Exponents high, high/ratio, … down to the first at or below low."""
    count = math.ceil(math.log(high / low) / math.log(ratio) - 1e-9) + 1
    return [[l, [high / ratio**k, 1.0]] for k in range(count)]
