"""Densities and geometries in the files of other programs, and coefficients to go on with.

Cube files hold a density on voxels, Molden files √n as an orbital or the orbitals of any program,
extended xyz files many geometries with their energies, and npz files the coefficients of √n.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kineticnet_jax.density import OrbitalDensity, SqrtDensity
from kineticnet_jax.errors import InputError
from kineticnet_jax.files import complete_file, write_arrays
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.system import System
from kineticnet_jax.types import PerPoint, Points
from kineticnet_jax.units import BOHR_IN_ANGSTROM

MARGIN = 6.0
"""Space around the nuclei in a cube file, in bohr: the density there is below 1e-5 of its peak."""

SPLINE = "cubic"
"""What is laid through the values on voxels; a kind `RegularGridInterpolator` can differentiate."""


@dataclass(frozen=True)
class VoxelDensity:
    """A density on evenly spaced voxels, with a cubic spline between them and zero outside.

    Voxels do not resolve the cusps at nuclei. Such a density is good for pictures, for differences
    and, fitted by `fit_sqrt_density`, for starting guesses; not for energies.

    Attributes:
        origin: position of the first voxel in bohr.
        steps: vectors from a voxel to the next along each of the three axes in bohr, as rows.
        values: n in bohr⁻³.
    """

    origin: Float[np.ndarray, "3"]
    steps: Float[np.ndarray, "3 3"]
    values: Float[np.ndarray, "x y z"]

    def at(self, system: System, points: Points) -> PerPoint:
        """The density in bohr⁻³ at any points (bohr), such as those of a plot."""
        return jnp.asarray(self._interpolate(np.asarray(points))[0], system.dtype)

    def on_grid(self, system: System) -> GridDensity:
        """The density and its gradient on the grid."""
        n, grad_n = self._interpolate(np.asarray(system.grid.points))
        dtype = system.dtype
        return GridDensity(jnp.asarray(n, dtype), jnp.asarray(grad_n, dtype))

    def _interpolate(
        self, points: Float[np.ndarray, "points 3"]
    ) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points 3"]]:
        """The density and its gradient; zero where the spline undershoots."""
        from scipy.interpolate import RegularGridInterpolator

        axes = tuple(np.arange(size, dtype=float) for size in self.values.shape)
        spline = RegularGridInterpolator(
            axes, self.values, method=SPLINE, bounds_error=False, fill_value=0.0
        )
        inverse = np.linalg.inv(self.steps)
        index = (points - self.origin) @ inverse
        n = spline(index)
        along = np.stack([spline(index, nu=row) for row in np.eye(3, dtype=int)], axis=1)
        return np.maximum(n, 0.0), np.where(n[:, None] > 0, along @ inverse.T, 0.0)


def write_cube(
    path: str | Path, system: System, density: SqrtDensity | OrbitalDensity, spacing: float = 0.2
) -> None:
    """Writes a density (bohr⁻³) as a Gaussian cube file.

    Args:
        path: where to write; the file appears when it is complete.
        system: the molecule.
        density: what to write.
        spacing: distance of neighbouring voxels in bohr.

    Raises:
        InputError: for a spacing that is not positive.
    """
    from ase import Atoms
    from ase.io.cube import write_cube as ase_write_cube

    if not spacing > 0:
        raise InputError(f"spacing must be positive, but is {spacing:g}")
    positions = np.asarray(system.molecule.positions)
    low = positions.min(axis=0) - MARGIN
    shape = np.ceil((positions.max(axis=0) + MARGIN - low) / spacing).astype(int) + 1
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    points = (low + spacing * index).reshape(-1, 3)
    n = density.at(system, jnp.asarray(points, dtype=system.dtype))
    atoms = Atoms(
        system.molecule.symbols,
        positions=positions * BOHR_IN_ANGSTROM,
        cell=spacing * shape * BOHR_IN_ANGSTROM,
    )
    comment = f"Electron density of {system.molecule.formula} in bohr^-3"
    with complete_file(Path(path)) as temporary, temporary.open("w") as file:
        ase_write_cube(
            file,
            atoms,
            np.asarray(n).reshape(shape),
            origin=low * BOHR_IN_ANGSTROM,
            comment=comment,
        )


def read_cube(path: str | Path, charge: int = 0) -> tuple[Molecule, VoxelDensity]:
    """Reads a density (bohr⁻³) from a Gaussian cube file of any program.

    Args:
        path: of the file; the first field of several is read.
        charge: total charge of the molecule, which the format does not hold.

    Raises:
        InputError: if the file is missing or not a cube file, or as in `Molecule.create`.
    """
    from ase.io.cube import read_cube as ase_read_cube

    content = _read(Path(path), "a cube file", lambda file: ase_read_cube(file))
    origin, steps = (content[key] / BOHR_IN_ANGSTROM for key in ("origin", "spacing"))
    atoms = content["atoms"]
    molecule = Molecule.create(
        atoms.get_chemical_symbols(), atoms.positions / BOHR_IN_ANGSTROM, charge
    )
    return molecule, VoxelDensity(origin, steps, content["data"])


def write_molden(path: str | Path, system: System, density: SqrtDensity) -> None:
    """Writes √n as an orbital that holds all electrons, for programs that show orbitals.

    Args:
        path: where to write; the file appears when it is complete.
        system: the molecule.
        density: what to write.

    Raises:
        InputError: if the density basis has functions beyond l = 4, which the format lacks.
    """
    from kineticnet_jax import reference

    coefficients = np.asarray(density.normalized(system).coefficients, dtype=float)
    electrons = system.n_electrons
    with complete_file(Path(path)) as temporary:
        reference.write_molden(
            temporary,
            system.molecule,
            system.density_basis.name,
            coefficients[:, None] / np.sqrt(electrons),
            np.array([float(electrons)]),
        )


def read_molden(path: str | Path, charge: int = 0) -> tuple[Molecule, OrbitalDensity]:
    """Reads the density of the occupied orbitals in a Molden file of any program.

    Args:
        path: of the file.
        charge: total charge of the molecule, which the format does not hold.

    Raises:
        InputError: if the file is missing, has no orbitals or Cartesian functions, if its
            occupations do not add up to the electrons, or as in `Molecule.create`.
    """
    from kineticnet_jax import reference

    path = Path(path)
    mol, orbitals, occupations = reference.read_molden(path)
    symbols = [mol.atom_pure_symbol(i) for i in range(mol.natm)]
    molecule = Molecule.create(symbols, mol.atom_coords(), charge)
    if abs(occupations.sum() - molecule.n_electrons) > 1e-3:
        raise InputError(
            f"{path}: {occupations.sum():g} electrons in its orbitals, but {molecule.formula} has "
            f"{molecule.n_electrons}; give the total charge"
        )
    occupied = occupations > 0
    weighted = orbitals[:, occupied] * np.sqrt(occupations[occupied])
    return molecule, OrbitalDensity(molecule.positions, reference.extract_basis(mol), weighted)


def save_density(path: str | Path, system: System, density: SqrtDensity) -> None:
    """Saves the coefficients of √n with what they belong to, as an npz file.

    Args:
        path: where to write; the file appears when it is complete.
        system: the molecule.
        density: what to save.
    """
    molecule = system.molecule
    arrays = {
        "coefficients": density.normalized(system).coefficients,
        "density_basis": system.density_basis.name,
        "charges": molecule.charges,
        "positions": molecule.positions,
        "charge": molecule.charge,
    }
    write_arrays(Path(path), {name: np.asarray(value) for name, value in arrays.items()})


def load_density(path: str | Path, system: System) -> SqrtDensity:
    """Loads the coefficients of √n, also for other positions of the same atoms.

    Args:
        path: a file of `save_density`.
        system: the molecule the density is for.

    Raises:
        InputError: if the file is missing or not one of `save_density`, or is of other atoms, of
            another charge or in another basis than the system.
    """
    names = ("coefficients", "density_basis", "charges", "charge")

    def read(file: IO) -> dict[str, np.ndarray]:
        with np.load(file) as content:
            return {name: content[name] for name in names}

    content = _read(Path(path), "a density of save_density", read, "rb")
    molecule, basis = system.molecule, str(content["density_basis"])
    charge = int(content["charge"])
    same_atoms = np.array_equal(content["charges"], np.asarray(molecule.charges))
    if not same_atoms or charge != molecule.charge:
        raise InputError(f"{path}: holds a density of other atoms, in other order or charge")
    if basis != system.density_basis.name:
        raise InputError(
            f"{path}: is in the density basis {basis}, but the system in "
            f"{system.density_basis.name}"
        )
    return SqrtDensity(jnp.asarray(content["coefficients"], dtype=system.dtype))


def read_frames(path: str | Path, charge: int = 0) -> list[Molecule]:
    """Reads all geometries of an xyz or extended xyz file.

    Args:
        path: of the file.
        charge: total charge of frames that do not tell theirs (`charge=` in the comment line).

    Raises:
        InputError: if the file is missing or malformed, or as in `Molecule.create`, naming the
            frame.
    """
    from ase.io import read

    frames = _read(Path(path), "an xyz file", lambda file: read(file, ":", format="extxyz"))
    molecules = []
    for number, atoms in enumerate(frames, 1):
        try:
            molecules.append(Molecule.from_ase(atoms, int(atoms.info.get("charge", charge))))
        except InputError as error:
            raise InputError(f"{path}: frame {number}: {error}") from None
    return molecules


def write_frames(
    path: str | Path,
    molecules: Sequence[Molecule],
    energies: Sequence[float] | None = None,
    forces: Sequence[Float[np.ndarray, "_ 3"]] | None = None,
) -> None:
    """Writes geometries as an extended xyz file, in the units of ASE (Å, eV, eV/Å).

    Args:
        path: where to write; the file appears when it is complete.
        molecules: one for each frame; their charges are in the comment lines.
        energies: of each in hartree.
        forces: on the nuclei of each in hartree/bohr.

    Raises:
        InputError: if there are not as many energies or forces as molecules.
    """
    from ase import Atoms, units
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    for name, values in (("energies", energies), ("forces", forces)):
        if values is not None and len(values) != len(molecules):
            raise InputError(f"{len(molecules)} molecules, but {len(values)} {name}")
    frames = []
    for i, molecule in enumerate(molecules):
        positions = np.asarray(molecule.positions) * BOHR_IN_ANGSTROM
        atoms = Atoms(molecule.symbols, positions=positions, info={"charge": molecule.charge})
        known: dict[str, Any] = {}
        if energies is not None:
            known["energy"] = energies[i] * units.Hartree
        if forces is not None:
            known["forces"] = np.asarray(forces[i]) * units.Hartree / units.Bohr
        if known:
            atoms.calc = SinglePointCalculator(atoms, **known)
        frames.append(atoms)
    with complete_file(Path(path)) as temporary:
        write(temporary, frames, format="extxyz")


def _read(path: Path, kind: str, read: Callable[[IO], Any], mode: str = "r") -> Any:
    """What a function makes of a file; whatever is wrong with the file is said in one line."""
    try:
        with path.open(mode) as file:
            return read(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # Readers fail in as many ways as a file can be wrong.
        raise InputError(f"{path}: not {kind}") from None
