"""A generated data set as samples on their grids, and as padded batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import overload

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kineticnet_jax.basis import coulomb_potential
from kineticnet_jax.data.config import SPLITS, DataConfig
from kineticnet_jax.data.labels import KohnShamPotential, kohn_sham_potential
from kineticnet_jax.data.spaces import FunctionSpace, OneElectronSpace, sample_orbitals
from kineticnet_jax.data.store import (
    FamilyRecord,
    GeometryRecord,
    open_data,
    read_family,
    read_geometry,
    stored_config,
    verify,
)
from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.types import PerPoint

GROUND_STATE_NAME = "ground state"
"""Name of the kind of a sample without an external potential."""

_CACHE = 1 << 30
"""Bytes of records that are kept in memory, if they are as large as in the file."""

_Array = Array | np.ndarray
_OnGrid = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "charges",
        "positions",
        "points",
        "weights",
        "n",
        "grad_n",
        "tau",
        "kinetic_energy",
        "real",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Samples:
    """A batch of samples on their grids, padded to common sizes; a pytree of NumPy arrays.

    Attributes:
        charges: nuclear charges; zero for padding.
        positions: nuclear positions in bohr; that of the first nucleus for padding.
        points: grid points in bohr.
        weights: quadrature weights in bohr³; zero for padding.
        n: density in bohr⁻³.
        grad_n: its gradient in bohr⁻⁴.
        tau: kinetic energy density in hartree/bohr³.
        kinetic_energy: T_s in hartree.
        real: false for samples that only fill up the last batch.
    """

    charges: Int[_Array, "*batch atoms"]
    positions: Float[_Array, "*batch atoms 3"]
    points: Float[_Array, "*batch points 3"]
    weights: Float[_Array, "*batch points"]
    n: Float[_Array, "*batch points"]
    grad_n: Float[_Array, "*batch points 3"]
    tau: Float[_Array, "*batch points"]
    kinetic_energy: Float[_Array, "*batch"]
    real: Bool[_Array, "*batch"]


@dataclass(frozen=True)
class Sample:
    """One sample of a data set.

    Attributes:
        family: name of the molecule family.
        split: "train", "validation" or "test".
        kind: name of the kind of its external potential, or "ground state".
        geometry: index of its geometry; `Dataset.record` has everything stored about it.
        number: of the sample in its geometry.
        points: grid points in bohr.
        weights: quadrature weights in bohr³.
        n: density in bohr⁻³.
        grad_n: its gradient in bohr⁻⁴.
        tau: kinetic energy density in hartree/bohr³.
        kinetic_energy: T_s in hartree.
    """

    family: str
    split: str
    kind: str
    geometry: int
    number: int
    points: Float[np.ndarray, "points 3"]
    weights: Float[np.ndarray, "points"]
    n: Float[np.ndarray, "points"]
    grad_n: Float[np.ndarray, "points 3"]
    tau: Float[np.ndarray, "points"]
    kinetic_energy: float


class Dataset(Sequence[Sample]):
    """The samples of a data set file, or a selection of them.

    Basis functions are not stored: densities and kinetic energy densities are evaluated from the
    orbitals when a sample is read. A selection or a slice shares the file with the whole.

    Args:
        path: file written by `kineticnet generate`.
        check: recompute the checksum of everything in the file.

    Raises:
        InputError: if the file is missing, damaged, of a later schema or no data set of ours.
    """

    def __init__(self, path: str | Path, check: bool = True):
        self.path = Path(path)
        with open_data(self.path) as file:
            if check:
                verify(self.path, file)
            self.config: DataConfig = stored_config(file)
            self._family_records = {
                name: read_family(group) for name, group in file["families"].items()
            }
            rows = []
            for name, group in file["geometries"].items():
                family, split = str(group.attrs["family"]), SPLITS.index(group.attrs["split"])
                kinds = group["perturbations"]["kind"]
                place = list(self._family_records).index(family)
                rows += [(int(name), i, place, split, kind) for i, kind in enumerate(kinds)]
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self._file = h5py.File(self.path, "r")
        size = self.path.stat().st_size / max(len(self.geometries), 1)
        self._read = lru_cache(max(int(_CACHE / size), 1))(self._read_geometry)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._rows)

    def __repr__(self) -> str:
        """One line about what is in it."""
        families = ", ".join(self.families)
        return f"Dataset({str(self.path)!r}: {len(self)} samples of {families})"

    def close(self) -> None:
        """Closes the file; the data set and its selections cannot be read any more."""
        self._file.close()

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the molecule families that occur."""
        names = list(self._family_records)
        return tuple(names[i] for i in np.unique(self._rows[:, 2]))

    def conditions(self, families: Sequence[str]) -> dict[str, str]:
        """What a functional trained on some families has seen, as text for its provenance."""
        config = self.config
        electrons = {self.family(name).n_electrons for name in families}
        return {
            "xc": config.xc,
            "basis": config.basis,
            "density basis": config.density_basis or "",
            "electrons": ", ".join(map(str, sorted(electrons))),
            "families": ", ".join(families),
            "data": config.to_json(),
        }

    @property
    def geometries(self) -> tuple[int, ...]:
        """Indices of the geometries that occur."""
        return tuple(int(i) for i in np.unique(self._rows[:, 0]))

    @property
    def kinetic_energies(self) -> Float[np.ndarray, "samples"]:
        """T_s of all samples in hartree."""
        return np.array([self._read(int(g)).kinetic_energy[i] for g, i in self._rows[:, :2]])

    def select(
        self,
        split: str | None = None,
        family: str | None = None,
        kind: str | tuple[str, ...] | None = None,
    ) -> "Dataset":
        """The samples of one split, family, or kind of external potential.

        Args:
            split: "train", "validation" or "test".
            family: name of a molecule family.
            kind: name of a kind of external potential, or "ground state"; or several of them.

        Raises:
            InputError: for a name that does not exist.
        """
        kinds = [GROUND_STATE_NAME, *(entry.name for entry in self.config.potentials)]
        kept = np.ones(len(self), dtype=bool)
        for column, label, chosen, known, offset in (
            (2, "family", family, list(self._family_records), 0),
            (3, "split", split, SPLITS, 0),
            (4, "kind of potential", kind, kinds, -1),
        ):
            if chosen is None:
                continue
            names = (chosen,) if isinstance(chosen, str) else chosen
            for name in names:
                if name not in known:
                    raise unknown_name(label, name, known)
            kept &= np.isin(self._rows[:, column], [known.index(name) + offset for name in names])
        return self._subset(kept)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Sample | Dataset":
        """One sample, or a slice of them as a data set."""
        if isinstance(index, slice):
            return self._subset(index)
        geometry, number, family, split, kind = (int(i) for i in self._rows[index])
        record = self._read(geometry)
        return Sample(
            list(self._family_records)[family],
            SPLITS[split],
            GROUND_STATE_NAME if kind < 0 else self.config.potentials[kind].name,
            geometry,
            number,
            *self._on_grid(record, number),
            float(record.kinetic_energy[number]),
        )

    def record(self, geometry: int) -> GeometryRecord:
        """Everything stored about a geometry."""
        return self._read(geometry)

    def family(self, name: str) -> FamilyRecord:
        """What all geometries of a family share."""
        return self._family_records[name]

    def molecule(self, geometry: int) -> Molecule:
        """Charges, positions and total charge of a geometry."""
        record = self._read(geometry)
        family = self._family_records[record.family]
        return Molecule(family.charges, record.positions, family.charge)

    def space(self, geometry: int) -> OneElectronSpace:
        """The arrays from which labels of a geometry are computed, in float64."""
        record = self._read(geometry)
        with jax.enable_x64(True):
            return _space(self._family_records[record.family], record)

    def potential(self, geometry: int, number: int = 0) -> KohnShamPotential:
        """The Kohn-Sham potential of a sample's reference, as a matrix and on the grid.

        In a one-shot data set it is the same for all samples of a geometry; the potential of a
        sample is this one and `local_potential` of its perturbation.

        Args:
            geometry: index of the geometry.
            number: of the sample in its geometry.
        """
        record = self._read(geometry)
        family = self._family_records[record.family]
        which = number if len(record.hartree_matrix) > 1 else 0
        with jax.enable_x64(True):
            space = _space(family, record)
            potentials = coulomb_potential(
                family.auxiliary_basis, space.positions, space.grid.points
            )
            return kohn_sham_potential(
                space,
                self.config.xc,
                jnp.asarray(record.reference_orbitals[which]),
                jnp.asarray(record.hartree_coefficients[which]) @ potentials,
                jnp.asarray(record.hartree_matrix[which]),
                jnp.asarray(record.xc_matrix[which]),
            )

    def by_geometry(self) -> Iterator[tuple[int, list[int]]]:
        """Each geometry that occurs with the numbers of its samples."""
        for geometry in self.geometries:
            yield geometry, [int(i) for i in self._rows[self._rows[:, 0] == geometry, 1]]

    def density(self, geometry: int, number: int) -> tuple[GridDensity, PerPoint]:
        """Density and kinetic energy density of a sample on its grid, as arrays in float64.

        Args:
            geometry: index of the geometry.
            number: of the sample in its geometry.
        """
        record = self._read(geometry)
        with jax.enable_x64(True):
            space = _space(self._family_records[record.family], record)
            occupied = jnp.asarray(record.orbitals[number][:, : space.occupied])
            n, grad_n, tau = _sample(space, occupied)
        return GridDensity(n, grad_n), tau

    def batches(
        self, size: int, seed: int | None = None, dtype: np.typing.DTypeLike | None = None
    ) -> Iterator[Samples]:
        """Padded batches of samples; each has one of few shapes.

        Samples are grouped by the size of their grid, and atoms are padded to the largest molecule
        of a group, so that a jitted function is compiled once for each group.

        Args:
            size: samples in a batch; the last of a group is filled up with repetitions, which are
                marked in `Samples.real`.
            seed: of a random order; by default the order of the data set.
            dtype: of the arrays, by default JAX's present precision.

        Yields:
            Batches of `size` samples; every sample occurs once.

        Raises:
            InputError: for a size below one.
        """
        if size < 1:
            raise InputError(f"the size of a batch must be at least 1, but is {size}")
        dtype = np.dtype(dtype or jnp.result_type(float))
        generator = None if seed is None else np.random.default_rng(seed)
        records = list(self._family_records.values())
        points = np.array([len(record.grid_owner) for record in records])[self._rows[:, 2]]
        chunks: list[np.ndarray] = []
        for bucket in np.unique(points):
            members = np.flatnonzero(points == bucket)
            if generator is not None:
                members = generator.permutation(members)
            chunks += [members[i : i + size] for i in range(0, len(members), size)]
        order = range(len(chunks)) if generator is None else generator.permutation(len(chunks))
        for i in order:
            bucket = points[chunks[i][0]]
            atoms = max(len(records[f].charges) for f in self._rows[points == bucket, 2])
            yield self._batch(chunks[i], size, atoms, dtype)

    def _batch(self, members: np.ndarray, size: int, atoms: int, dtype: np.dtype) -> Samples:
        filled = np.resize(members, size)
        columns = []
        for geometry, number in self._rows[filled, :2]:
            record = self._read(int(geometry))
            charges = self._family_records[record.family].charges
            missing = (0, atoms - len(charges))
            positions = np.concatenate(
                [record.positions, np.repeat(record.positions[:1], missing[1], axis=0)]
            )
            on_grid = self._on_grid(record, int(number))
            energy = record.kinetic_energy[number]
            columns.append((np.pad(charges, missing), positions, *on_grid, energy))
        charges, *numbers = (np.stack(column) for column in zip(*columns, strict=True))
        positions, points, weights, n, grad_n, tau, energies = (x.astype(dtype) for x in numbers)
        real = np.arange(size) < len(members)
        return Samples(charges, positions, points, weights, n, grad_n, tau, energies, real)

    def _subset(self, chosen: slice | Bool[np.ndarray, "samples"]) -> "Dataset":
        subset = object.__new__(Dataset)
        subset.__dict__.update(self.__dict__)
        subset._rows = self._rows[chosen]
        return subset

    def _read_geometry(self, geometry: int) -> GeometryRecord:
        return read_geometry(self._file[f"geometries/{geometry:06d}"])

    def _on_grid(self, record: GeometryRecord, number: int) -> _OnGrid:
        """Points, weights, n, ∇n and τ of one sample."""
        family = self._family_records[record.family]
        density, tau = self.density(record.index, number)
        points = record.positions[family.grid_owner] + family.grid_offsets
        n, grad_n = np.asarray(density.n), np.asarray(density.grad_n)
        return points, record.grid_weights, n, grad_n, np.asarray(tau)


def _space(family: FamilyRecord, record: GeometryRecord) -> OneElectronSpace:
    points = record.positions[family.grid_owner] + family.grid_offsets
    return OneElectronSpace(
        jnp.asarray(family.charges),
        jnp.asarray(record.positions),
        Grid(jnp.asarray(points), jnp.asarray(record.grid_weights)),
        FunctionSpace(
            family.orbital_basis,
            jnp.asarray(record.orbital_transform),
            jnp.asarray(record.orbital_kinetic_eigenvalues),
        ),
        FunctionSpace(
            family.density_basis,
            jnp.asarray(record.density_transform),
            jnp.asarray(record.density_kinetic_eigenvalues),
        ),
        jnp.asarray(record.kinetic),
        jnp.asarray(record.attraction),
        family.n_electrons,
    )


_sample = jax.jit(sample_orbitals)
