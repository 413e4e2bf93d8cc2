"""What a data set is made of: a frozen dataclass, read from a small TOML file."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kineticnet_jax.config import from_mapping, load
from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.xc import XC_FUNCTIONALS
from kineticnet_jax.grid import GRID_LEVELS

Mode = Literal["one-shot", "self-consistent"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Family:
    """One molecule and how its geometries are drawn.

    Attributes:
        name: of the family, unique in a data set.
        zmatrix: internal coordinates (ångström and degrees), one atom a line; a word in place of a
            number is a variable.
        geometries: how many are drawn.
        variables: lower and upper end of each variable, drawn uniformly; a bond length up to its
            dissociation, an angle.
        charge: total charge.
        cartesian_noise: standard deviation of a displacement of every coordinate in ångström.
        temperature: of displacements along the normal modes of the geometry with all variables in
            the middle, in kelvin (Hartree-Fock/STO-3G force constants, classical); 0 for none.
        rotate: turn every geometry at random, so that no direction of the grid is special.
        visited: name or folder of a functional. The samples then have no random potentials but the
            Kohn-Sham potentials of densities that an optimization with this functional visits.
    """

    name: str
    zmatrix: str
    geometries: int
    variables: dict[str, tuple[float, float]] = field(default_factory=dict)
    charge: int = 0
    cartesian_noise: float = 0.0
    temperature: float = 0.0
    rotate: bool = True
    visited: str = ""

    def check(self) -> None:
        """Finds ranges nothing can be drawn from.

        Raises:
            InputError: naming the family and what to change.
        """
        if self.name in ("", ".", "..") or "/" in self.name:
            self._fail("a name is a group of the file: it must not be empty or contain '/'")
        if self.geometries < 1:
            self._fail(f"geometries must be at least 1, but is {self.geometries}")
        if self.cartesian_noise < 0 or self.temperature < 0:
            self._fail("cartesian_noise and temperature must not be negative")
        words = set(self.zmatrix.split())
        rows = [line.split() for line in self.zmatrix.replace(";", "\n").splitlines()]
        lengths = {row[2] for row in rows if len(row) > 2}
        for name, (low, high) in self.variables.items():
            if name not in words:
                self._fail(f"variable '{name}' does not occur in the zmatrix")
            if name in lengths and low <= 0:
                self._fail(f"the bond length '{name}' must be positive, but starts at {low:g}")
            if not -360 <= low <= high <= 360:
                self._fail(f"the range of '{name}' must ascend, but is {low:g} to {high:g}")

    def _fail(self, text: str) -> None:
        raise InputError(f"family '{self.name}': {text}")


@dataclass(frozen=True)
class PotentialKind:
    """One kind of random external potential; a data set draws from a mixture of them.

    v(r) = Σ_k a_k exp(-|r - R_k|² / 2σ_k²) + F·r + p·(r - R) / (|r - R|² + 1)^(3/2)
           - Σ_A ΔZ_A / |r - R_A| + a random symmetric matrix.

    Attributes:
        name: of the kind.
        weight: how often it is drawn, relative to the others.
        gaussians: smallest and largest number of Gaussians.
        amplitudes: s in a_k = s N(0, 1) bohr / σ_k (hartree), one of them for each potential.
        widths: smallest and largest σ_k in bohr, drawn log-uniformly.
        centred: probability that a Gaussian sits on a nucleus; otherwise it is displaced from one
            by N(0, 1) min(2 bohr, 2σ) along each axis.
        field: standard deviation of the components of a uniform field F in hartree/bohr.
        dipole: standard deviation of the components of a point dipole p in e bohr, which stands
            6 bohr from a nucleus in a random direction.
        charge_change: standard deviation of ΔZ_A / Z_A.
        matrix: standard deviation of the elements of a random symmetric matrix between
            orthonormalised basis functions in hartree. It is no local potential: such a sample has
            no potential label in density space.
    """

    name: str
    weight: float = 1.0
    gaussians: tuple[int, int] = (0, 0)
    amplitudes: tuple[float, ...] = (0.1,)
    widths: tuple[float, float] = (0.1, 3.5)
    centred: float = 0.5
    field: float = 0.0
    dipole: float = 0.0
    charge_change: float = 0.0
    matrix: float = 0.0

    def check(self) -> None:
        """Finds ranges nothing can be drawn from.

        Raises:
            InputError: naming the kind and what to change.
        """
        for name, low, high in (
            ("gaussians", 0, 1000),
            ("amplitudes", 0.0, math.inf),
            ("widths", 1e-3, math.inf),
        ):
            values = getattr(self, name)
            ascending = name == "amplitudes" or tuple(sorted(values)) == values
            if not values or not ascending or not low <= min(values) <= max(values) <= high:
                raise InputError(
                    f"potential '{self.name}': {name} must be an ascending range from {low:g} up, "
                    f"but is {list(values)}"
                )
        strengths = (self.weight, self.field, self.dipole, self.charge_change, self.matrix)
        if min(strengths) < 0 or not 0 <= self.centred <= 1:
            raise InputError(
                f"potential '{self.name}': weight and strengths must not be negative, and centred "
                "must be 0 to 1"
            )


MANY_WEAK = (
    PotentialKind("weak", 2.0, gaussians=(1, 2), amplitudes=(0.02, 0.06, 0.15)),
    PotentialKind("strong", 1.0, gaussians=(2, 5), amplitudes=(0.1, 0.25)),
)
"""The default mixture: two thirds weak and localised, one third strong, on all length scales."""


@dataclass(frozen=True)
class Limits:
    """What a sample must satisfy to be stored; otherwise it is rejected and counted.

    Attributes:
        orbital_residual: largest |(T + V)_ai| in hartree.
        gap: least ε_LUMO - ε_HOMO in hartree.
        kinetic: largest |∫τ dr - T_s| on the stored grid in hartree.
        electrons: largest |∫n dr - N| on the stored grid.
        sqrt_fit: largest ∫|ψ² - n| dr / N of the fit of √n in the density basis.
    """

    orbital_residual: float = 1e-7
    gap: float = 0.01
    kinetic: float = 5e-4
    electrons: float = 1e-4
    sqrt_fit: float = 4e-3


@dataclass(frozen=True)
class SplitFractions:
    """Fractions of the geometries of each family in the three splits."""

    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1


@dataclass(frozen=True)
class DataConfig:
    """A data set of Kohn-Sham ground states in random external potentials.

    Attributes:
        name: of the data set.
        families: the molecules.
        potentials: the mixture external potentials are drawn from.
        potentials_per_geometry: how many are drawn for each geometry, beside the ground state of
            the molecule itself, which is always its first sample.
        mode: "one-shot" keeps the Kohn-Sham potential of the molecule and adds the external
            potential to it; "self-consistent" solves the Kohn-Sham equations for every potential.
        xc: exchange-correlation functional.
        basis: orbital basis.
        density_basis: basis of √n, as in `prepare`; by default the orbital basis for two electrons
            and even-tempered for more.
        density_fit: take the Coulomb potential of the Kohn-Sham equations from the density expanded
            in the auxiliary basis instead of from exact integrals. It is the potential of the
            labels on the grid, so that they lose nothing; the energy of water changes by less than
            0.01 mHa. Faster the larger the basis.
        grid_level: of the stored quadrature grid.
        seed: of everything random.
        splits: fractions of the geometries for training, validation and test.
        limits: what a sample must satisfy.
    """

    name: str
    families: tuple[Family, ...]
    potentials: tuple[PotentialKind, ...] = MANY_WEAK
    potentials_per_geometry: int = 30
    mode: Mode = "one-shot"
    xc: str = "blyp"
    basis: str = "cc-pvdz"
    density_basis: str | None = None
    density_fit: bool = False
    grid_level: int = 2
    seed: int = 0
    splits: SplitFractions = SplitFractions()
    limits: Limits = Limits()

    def check(self) -> None:
        """Checks everything that can be checked without a calculation.

        Raises:
            InputError: for the first value that makes no sense.
        """
        if not self.families:
            raise InputError("a data set needs at least one [[families]] entry")
        for family in self.families:
            family.check()
        for potential in self.potentials:
            potential.check()
        for kind, names in (
            ("families", [family.name for family in self.families]),
            ("potentials", [potential.name for potential in self.potentials]),
        ):
            if len(set(names)) < len(names):
                raise InputError(f"{kind} must have different names, but are {', '.join(names)}")
        if self.potentials_per_geometry < 0:
            raise InputError("potentials_per_geometry must not be negative")
        if self.potentials_per_geometry == 0 and any(one.visited for one in self.families):
            raise InputError("visited densities need potentials_per_geometry of at least 1")
        if self.mode == "self-consistent" and any(one.visited for one in self.families):
            raise InputError("visited densities have potentials of their own: set mode to one-shot")
        if self.potentials_per_geometry and not sum(kind.weight for kind in self.potentials) > 0:
            raise InputError("at least one of the potentials must have a positive weight")
        if self.xc not in XC_FUNCTIONALS:
            raise unknown_name("xc functional", self.xc, XC_FUNCTIONALS)
        if self.mode not in typing.get_args(Mode):
            raise unknown_name("mode", self.mode, typing.get_args(Mode))
        if self.grid_level not in GRID_LEVELS:
            raise InputError(f"grid_level must be 0 to {GRID_LEVELS[-1]}, but is {self.grid_level}")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, but is {self.seed}")
        fractions = dataclasses.astuple(self.splits)
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
            raise InputError(f"the splits must add up to 1, but are {fractions}")

    def to_json(self) -> str:
        """The configuration as one line of JSON, as stored in a data set."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def load_config(path: str | Path) -> DataConfig:
    """Reads and checks a data set configuration (TOML).

    Args:
        path: file with the attributes of `DataConfig` as keys, `[[families]]` and `[[potentials]]`
            as arrays of tables, `[splits]` and `[limits]` as tables.

    Returns:
        The checked configuration.

    Raises:
        InputError: if the file is missing, not TOML, empty, has unknown keys (the closest known
            one is suggested), values of a wrong type, or ranges that make no sense.
    """
    return load(DataConfig, Path(path))


def config_from_json(text: str) -> DataConfig:
    """The inverse of `DataConfig.to_json`."""
    return from_mapping(DataConfig, json.loads(text), "the configuration")
