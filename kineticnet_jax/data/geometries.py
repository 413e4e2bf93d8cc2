"""Geometries of a molecule family, drawn reproducibly."""

import zlib
from dataclasses import dataclass

import numpy as np
from ase.io.zmatrix import parse_zmatrix
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from kineticnet_jax.data.config import SPLITS, DataConfig, Family
from kineticnet_jax.errors import InputError
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.units import BOHR_IN_ANGSTROM

ATTEMPTS = 100
"""Draws of one geometry before its family is called impossible."""

LEAST_DISTANCE = 0.25
"""A drawn geometry with two nuclei closer than this (ångström) is drawn again."""


@dataclass(frozen=True)
class GeometryTask:
    """One geometry of a data set and everything random about it.

    Attributes:
        index: of the geometry in the data set.
        family: name of its family.
        split: "train", "validation" or "test".
        molecule: the geometry.
        seed: of its external potentials.
    """

    index: int
    family: str
    split: str
    molecule: Molecule
    seed: int


def draw_geometries(config: DataConfig) -> list[GeometryTask]:
    """All geometries of a data set, the same for the same configuration.

    What is drawn for a geometry depends on the seed, the name of its family and its number in it,
    and on nothing else.

    Args:
        config: the data set.

    Returns:
        One task for each geometry, in order.

    Raises:
        InputError: for a Z-matrix that cannot be read, or a family from which no geometry with
            separate nuclei can be drawn.
    """
    tasks: list[GeometryTask] = []
    for family in config.families:
        modes = _thermal_modes(family)
        label = zlib.crc32(family.name.encode())
        splits = _splits(config, family, np.random.default_rng([config.seed, label]))
        for number in range(family.geometries):
            seeds = np.random.SeedSequence([config.seed, label, number])
            geometry, potentials = seeds.spawn(2)
            molecule = _draw(family, modes, np.random.default_rng(geometry))
            seed = int(potentials.generate_state(1)[0])
            tasks.append(GeometryTask(len(tasks), family.name, splits[number], molecule, seed))
    return tasks


def middle_geometry(family: Family) -> Molecule:
    """The geometry with all variables in the middle of their ranges.

    Raises:
        InputError: if the Z-matrix cannot be read or makes no molecule.
    """
    return _molecule(
        family, _positions(family, {k: (a + b) / 2 for k, (a, b) in family.variables.items()})
    )


def _splits(config: DataConfig, family: Family, generator: np.random.Generator) -> list[str]:
    """A split for every geometry; the fractions are met as closely as whole numbers allow."""
    fractions = [getattr(config.splits, name) for name in SPLITS]
    ends = np.rint(np.cumsum(fractions) * family.geometries).astype(int)
    names = np.repeat(SPLITS, np.diff(ends, prepend=0))
    return [str(name) for name in generator.permutation(names)]


def _draw(
    family: Family, modes: Float[np.ndarray, "modes atoms 3"], generator: np.random.Generator
) -> Molecule:
    for _ in range(ATTEMPTS):
        values = {k: generator.uniform(a, b) for k, (a, b) in family.variables.items()}
        positions = _positions(family, values)
        positions = positions + np.einsum("k,kax->ax", generator.normal(size=len(modes)), modes)
        positions += family.cartesian_noise * generator.normal(size=positions.shape)
        if family.rotate:
            positions = Rotation.random(rng=generator).apply(positions)
        if _closest(positions) >= LEAST_DISTANCE:
            return _molecule(family, positions)
    raise InputError(
        f"family '{family.name}': in {ATTEMPTS} draws two nuclei were always closer than "
        f"{LEAST_DISTANCE} Å; change the ranges of its variables"
    )


def _positions(family: Family, values: dict[str, float]) -> Float[np.ndarray, "atoms 3"]:
    try:
        positions = parse_zmatrix(family.zmatrix, defs=values).positions
    except KeyError as error:
        raise InputError(f"family '{family.name}': unknown element {error}") from None
    except (ValueError, RuntimeError, IndexError) as error:
        detail = str(error).splitlines()[0] if str(error) else "a line is incomplete"
        raise InputError(f"family '{family.name}': zmatrix cannot be read ({detail})") from None
    if not np.all(np.isfinite(positions)):
        raise InputError(f"family '{family.name}': the zmatrix makes no finite positions")
    return positions - positions.mean(axis=0)


def _symbols(family: Family) -> list[str]:
    """Element symbols of a Z-matrix; a number may follow a symbol to tell atoms apart."""
    lines = [line.split() for line in family.zmatrix.replace(";", "\n").splitlines()]
    return [words[0].rstrip("0123456789").capitalize() for words in lines if words]


def _molecule(family: Family, positions: Float[np.ndarray, "atoms 3"]) -> Molecule:
    try:
        return Molecule.create(_symbols(family), positions / BOHR_IN_ANGSTROM, family.charge)
    except InputError as error:
        raise InputError(f"family '{family.name}': {error}") from None


def _closest(positions: Float[np.ndarray, "atoms 3"]) -> float:
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    return float(np.min(distances + np.diag(np.full(len(positions), np.inf)), initial=np.inf))


def _thermal_modes(family: Family) -> Float[np.ndarray, "modes atoms 3"]:
    """Displacements in ångström of one standard deviation along each normal mode."""
    molecule = middle_geometry(family)
    if family.temperature == 0 or len(molecule) == 1:
        return np.zeros((0, len(molecule), 3))
    from kineticnet_jax import reference

    return BOHR_IN_ANGSTROM * reference.thermal_modes(molecule, family.temperature)
