"""Data sets as HDF5 files: what is in them, how it is written, read and checked.

    /                       attributes: format, schema_version, config (JSON), versions (JSON)
    /families/NAME          charges, grid template and Gaussian basis sets of a molecule
    /geometries/000000      one group for each geometry: the fields of `GeometryRecord`
    /failures/000000        geometries without a converged reference, and why
    /splits/train           indices of geometries; likewise validation and test

The attribute `units` of the file names the unit of every dataset and of every column of a table,
and every geometry and family has a `checksum` of its content.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int

from kineticnet_jax.basis import Basis, ShellGroup
from kineticnet_jax.data.config import DataConfig, config_from_json
from kineticnet_jax.data.potentials import Perturbation
from kineticnet_jax.errors import InputError

FORMAT = "kineticnet_jax reference data"
SCHEMA_VERSION = 1

_SAMPLE_COLUMNS = {
    "draw": "1",
    "kinetic_energy": "hartree",
    "orbital_residual": "hartree",
    "gap": "hartree",
    "kinetic_error": "hartree",
    "electron_error": "1",
    "sqrt_fit_error": "1",
    "density_change": "1",
}

_PERTURBATION_COLUMNS = {
    "kind": "1",
    "amplitudes": "hartree",
    "centres": "bohr",
    "widths": "bohr",
    "field": "hartree/bohr",
    "dipole": "e bohr",
    "dipole_position": "bohr",
    "charge_change": "e",
    "matrix_strength": "hartree",
    "matrix_key": "1",
}

_ARRAYS = {
    "positions": "bohr",
    "grid_weights": "bohr^3",
    "overlap": "1",
    "kinetic": "hartree",
    "attraction": "hartree/e",
    "orbital_transform": "1",
    "orbital_kinetic_eigenvalues": "hartree",
    "density_transform": "1",
    "density_kinetic_eigenvalues": "hartree",
    "reference_energies": "hartree",
    "reference_orbitals": "bohr^(-3/2)",
    "hartree_matrix": "hartree",
    "xc_matrix": "hartree",
    "hartree_coefficients": "e",
    "orbitals": "bohr^(-3/2)",
    "orbital_energies": "hartree",
    "sqrt_coefficients": "1",
    "potential_gradient": "hartree",
}

UNITS = {
    "families/*/charges": "e",
    "families/*/grid_offsets": "bohr",
    "families/*/*_basis/l*/exponents": "bohr^-2",
    "geometries/*": _ARRAYS,
    "geometries/*/samples": _SAMPLE_COLUMNS,
    "geometries/*/perturbations": _PERTURBATION_COLUMNS,
}
"""Units of everything in a file, as stored in its attribute `units`; all others have none."""

_BASES = ("orbital_basis", "density_basis", "auxiliary_basis")

ENERGIES = ("total", "kinetic", "hartree", "xc", "external", "nuclear")
"""Columns of `reference_energies`."""


@dataclass(frozen=True)
class GeometryRecord:
    """One geometry as stored: its Kohn-Sham reference and its samples.

    Arrays of the reference have a leading axis `potentials` of length one in a one-shot data set
    and of one entry for each sample in a self-consistent one.

    Attributes:
        family: name of the molecule family.
        index: of the geometry in the data set.
        split: "train", "validation" or "test".
        seed: of the external potentials.
        rejected: how many potentials were rejected, by reason.
        positions: nuclear positions in bohr.
        grid_weights: weights of the molecular grid; its points are
            positions[grid_owner] + grid_offsets with the template of the family.
        overlap: S_μν of the orbital basis.
        kinetic: T_μν of the orbital basis.
        attraction: ⟨χ_μ| 1 / |r - R_A| |χ_ν⟩ of every nucleus.
        orbital_transform: U with UᵀSU = 1 and UᵀTU diagonal.
        orbital_kinetic_eigenvalues: diagonal of UᵀTU.
        density_transform: the same for the basis of √n.
        density_kinetic_eigenvalues: the same for the basis of √n.
        reference_energies: total energy of the Kohn-Sham reference and its terms (`ENERGIES`);
            NaN for a density that an optimization visits.
        reference_orbitals: its occupied orbitals.
        hartree_matrix: ⟨χ_μ|v_H|χ_ν⟩ of the reference.
        xc_matrix: ⟨χ_μ|v_xc|χ_ν⟩ of the reference.
        hartree_coefficients: v_H(r) = Σ_P c_P V_P(r) with the potentials of the auxiliary basis.
        draw: number of each sample's potential among those drawn; 0 is the ground state itself.
        perturbation: parameters of the external potentials.
        kinetic_energy: T_s of each sample.
        orbitals: C_μi of each sample, occupied first.
        orbital_energies: ε_i of each sample.
        sqrt_coefficients: √n in the orthonormal functions `density_transform`.
        potential_gradient: dT_s/dx there; see `Labels`.
        orbital_residual: largest |(T + V)_ai| of each sample.
        gap: ε_LUMO - ε_HOMO of each sample.
        kinetic_error: ∫τ dr - T_s on the grid.
        electron_error: ∫n dr - N on the grid.
        sqrt_fit_error: ∫|ψ² - n| dr / N.
        density_change: ∫|n - n_0| dr / N with the density n_0 of the unperturbed molecule.
    """

    family: str
    index: int
    split: str
    seed: int
    rejected: dict[str, int]
    positions: Float[np.ndarray, "atoms 3"]
    grid_weights: Float[np.ndarray, "points"]
    overlap: Float[np.ndarray, "functions functions"]
    kinetic: Float[np.ndarray, "functions functions"]
    attraction: Float[np.ndarray, "atoms functions functions"]
    orbital_transform: Float[np.ndarray, "functions functions"]
    orbital_kinetic_eigenvalues: Float[np.ndarray, "functions"]
    density_transform: Float[np.ndarray, "density_functions density_functions"]
    density_kinetic_eigenvalues: Float[np.ndarray, "density_functions"]
    reference_energies: Float[np.ndarray, "potentials terms"]
    reference_orbitals: Float[np.ndarray, "potentials functions occupied"]
    hartree_matrix: Float[np.ndarray, "potentials functions functions"]
    xc_matrix: Float[np.ndarray, "potentials functions functions"]
    hartree_coefficients: Float[np.ndarray, "potentials auxiliaries"]
    draw: Int[np.ndarray, "samples"]
    perturbation: Perturbation
    kinetic_energy: Float[np.ndarray, "samples"]
    orbitals: Float[np.ndarray, "samples functions orbitals"]
    orbital_energies: Float[np.ndarray, "samples functions"]
    sqrt_coefficients: Float[np.ndarray, "samples density_functions"]
    potential_gradient: Float[np.ndarray, "samples density_functions"]
    orbital_residual: Float[np.ndarray, "samples"]
    gap: Float[np.ndarray, "samples"]
    kinetic_error: Float[np.ndarray, "samples"]
    electron_error: Float[np.ndarray, "samples"]
    sqrt_fit_error: Float[np.ndarray, "samples"]
    density_change: Float[np.ndarray, "samples"]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.kinetic_energy)


@dataclass(frozen=True)
class FamilyRecord:
    """What all geometries of a family share.

    Attributes:
        name: of the family.
        charge: total charge.
        charges: nuclear charges.
        grid_owner: atom each grid point belongs to.
        grid_offsets: grid points relative to their atom in bohr.
        orbital_basis: Gaussian basis of the orbitals.
        density_basis: Gaussian basis of √n.
        auxiliary_basis: charge densities whose potentials V_P expand the Hartree potential.
    """

    name: str
    charge: int
    charges: Int[np.ndarray, "atoms"]
    grid_owner: Int[np.ndarray, "points"]
    grid_offsets: Float[np.ndarray, "points 3"]
    orbital_basis: Basis
    density_basis: Basis
    auxiliary_basis: Basis

    @property
    def n_electrons(self) -> int:
        """Number of electrons."""
        return int(np.sum(self.charges)) - self.charge


def write_header(file: h5py.File, config: DataConfig, versions: dict[str, str]) -> None:
    """Writes what identifies a data set: format, schema, configuration and package versions."""
    file.attrs["format"] = FORMAT
    file.attrs["schema_version"] = SCHEMA_VERSION
    file.attrs["config"] = config.to_json()
    file.attrs["seed"] = config.seed
    file.attrs["units"] = json.dumps(UNITS)
    file.attrs["versions"] = json.dumps(versions, sort_keys=True)


def write_geometry(group: h5py.Group, record: GeometryRecord) -> None:
    """Writes a geometry into an empty group, with its checksum."""
    content: dict[str, np.ndarray] = {name: getattr(record, name) for name in _ARRAYS}
    content["samples"] = _table(record, _SAMPLE_COLUMNS)
    content["perturbations"] = _table(record.perturbation, _PERTURBATION_COLUMNS)
    attributes = {name: getattr(record, name) for name in ("family", "index", "split", "seed")}
    _write(group, content, attributes | {"rejected": json.dumps(record.rejected, sort_keys=True)})


def read_geometry(group: h5py.Group) -> GeometryRecord:
    """Reads what `write_geometry` wrote."""
    samples, perturbations = group["samples"][()], group["perturbations"][()]
    return GeometryRecord(
        family=str(group.attrs["family"]),
        index=int(group.attrs["index"]),
        split=str(group.attrs["split"]),
        seed=int(group.attrs["seed"]),
        rejected=json.loads(group.attrs["rejected"]),
        perturbation=Perturbation(**{name: perturbations[name] for name in _PERTURBATION_COLUMNS}),
        **{name: group[name][()] for name in _ARRAYS},
        **{name: samples[name] for name in _SAMPLE_COLUMNS},
    )


def _table(owner: object, columns: dict[str, str]) -> np.ndarray:
    """Attributes of an object, equally long arrays, as one structured array."""
    arrays = {name: np.asarray(getattr(owner, name)) for name in columns}
    kinds = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
    table = np.empty(len(next(iter(arrays.values()))), dtype=kinds)
    for name, array in arrays.items():
        table[name] = array
    return table


def write_family(group: h5py.Group, record: FamilyRecord) -> None:
    """Writes a family into an empty group, with its checksum."""
    content = {name: getattr(record, name) for name in ("charges", "grid_owner", "grid_offsets")}
    for name in _BASES:
        basis: Basis = getattr(record, name)
        content[f"{name}/order"] = np.array(basis.order)
        for shells in basis.groups:
            for part in ("atom", "exponents", "coefficients"):
                content[f"{name}/l{shells.l}/{part}"] = np.asarray(getattr(shells, part))
    _write(group, content, {"name": record.name, "charge": record.charge})


def read_family(group: h5py.Group) -> FamilyRecord:
    """Reads what `write_family` wrote."""
    return FamilyRecord(
        str(group.attrs["name"]),
        int(group.attrs["charge"]),
        group["charges"][()],
        group["grid_owner"][()],
        group["grid_offsets"][()],
        *(_read_basis(group[name]) for name in _BASES),
    )


def _read_basis(group: h5py.Group) -> Basis:
    order = tuple(int(i) for i in group["order"][()])
    names = sorted((name for name in group if name != "order"), key=lambda name: int(name[1:]))
    groups = tuple(
        ShellGroup(
            group[name]["atom"][()],
            group[name]["exponents"][()],
            group[name]["coefficients"][()],
            int(name[1:]),
        )
        for name in names
    )
    return Basis(groups, order, len(order))


def _write(
    group: h5py.Group, content: dict[str, np.ndarray], attributes: dict[str, str | int]
) -> None:
    """Datasets, the large ones compressed, attributes and the checksum of both."""
    for name, values in content.items():
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        group.create_dataset(name, data=values, **(options if values.nbytes > 65536 else {}))
    group.attrs.update(attributes)
    group.attrs["checksum"] = _checksum(content, attributes)


def _checksum(content: dict[str, np.ndarray], attributes: dict[str, Any]) -> str:
    """SHA-256 of all attributes, names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(attributes):
        if name != "checksum":
            digest.update(f"{name}={attributes[name]};".encode())
    for name in sorted(content):
        values = np.ascontiguousarray(content[name])
        digest.update(f"{name}:{values.dtype.descr}{values.shape};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def checksum(group: h5py.Group) -> str:
    """The checksum of what a group of a family or a geometry contains now."""
    content: dict[str, np.ndarray] = {}

    def collect(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            content[name] = item[()]

    group.visititems(collect)
    return _checksum(content, dict(group.attrs))


@contextmanager
def open_data(path: str | Path) -> Iterator[h5py.File]:
    """A data set for reading, after its format and schema have been checked.

    Raises:
        InputError: if the file is missing, truncated, damaged, no data set of ours, or of a later
            schema.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            _check_header(path, file)
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and "signature" in str(error):
            raise InputError(f"{path}: not an HDF5 file") from None
        raise InputError(
            f"{path}: damaged or incomplete ({str(error).splitlines()[0]}); generate it again"
        ) from None


def _check_header(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise InputError(f"{path}: an HDF5 file, but not a data set of kineticnet generate")
    version = int(file.attrs["schema_version"])
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path}: has schema {version}, but this version of kineticnet_jax reads up to "
            f"{SCHEMA_VERSION}; upgrade it"
        )


def stored_config(file: h5py.File) -> DataConfig:
    """The configuration a data set was generated from."""
    return config_from_json(str(file.attrs["config"]))


def verify(path: str | Path, file: h5py.File) -> None:
    """Recomputes the checksums of all families and geometries.

    Raises:
        InputError: naming the first group whose content is not what was written.
    """
    for folder in ("families", "geometries"):
        for name, group in file[folder].items():
            if checksum(group) != group.attrs["checksum"]:
                raise InputError(
                    f"{path}: /{folder}/{name} is damaged (checksum); generate the data again"
                )
