"""What is inside a data set, as data."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineticnet_jax.data.config import SPLITS, DataConfig
from kineticnet_jax.data.store import open_data, stored_config, verify


@dataclass(frozen=True)
class FamilySummary:
    """One molecule family of a data set.

    Attributes:
        name: of the family.
        electrons: number of electrons.
        points: quadrature points of a geometry, padding included.
        geometries: number of geometries in each split.
        samples: number of samples in each split.
        rejected: number of rejected samples, by reason.
        failures: geometries without a converged reference, and why.
        kinetic_energy: smallest and largest T_s in hartree.
        density_change: median and largest ∫|n - n_0| dr / N of the perturbed samples.
    """

    name: str
    electrons: int
    points: int
    geometries: dict[str, int]
    samples: dict[str, int]
    rejected: dict[str, int]
    failures: dict[int, str]
    kinetic_energy: tuple[float, float] | None
    density_change: tuple[float, float] | None


@dataclass(frozen=True)
class Summary:
    """What is inside a data set.

    Attributes:
        path: the file.
        megabytes: its size.
        config: what it was generated from.
        versions: of the packages that generated it.
        families: the molecule families.
    """

    path: Path
    megabytes: float
    config: DataConfig
    versions: dict[str, str]
    families: tuple[FamilySummary, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(sum(family.samples.values()) for family in self.families)

    @property
    def rejected(self) -> Counter:
        """Number of rejected samples by reason."""
        return sum((Counter(family.rejected) for family in self.families), Counter())

    @property
    def failures(self) -> dict[int, str]:
        """Geometries without a converged reference, and why."""
        return {index: why for family in self.families for index, why in family.failures.items()}

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return asdict(self) | {"path": str(self.path), "config": json.loads(self.config.to_json())}


def summarize(path: str | Path) -> Summary:
    """Reads what is inside a data set and verifies its checksums.

    Args:
        path: the HDF5 file.

    Raises:
        InputError: if the file is missing, damaged, of a later schema or no data set of ours.
    """
    path = Path(path)
    with open_data(path) as file:
        verify(path, file)
        config = stored_config(file)
        tables: dict[str, list[tuple[str, np.ndarray, dict[str, int]]]] = {}
        failures: dict[str, dict[int, str]] = {}
        for group in file["geometries"].values():
            entry = (str(group.attrs["split"]), group["samples"][()])
            rejected = json.loads(group.attrs["rejected"])
            tables.setdefault(str(group.attrs["family"]), []).append((*entry, rejected))
        for name, group in file["failures"].items():
            failures.setdefault(str(group.attrs["family"]), {})[int(name)] = group.attrs["reason"]
        families = []
        for family in config.families:
            group = file[f"families/{family.name}"]
            rows = tables.get(family.name, [])
            samples = np.concatenate([table for _, table, _ in rows]) if rows else None
            perturbed = None if samples is None else samples[samples["draw"] > 0]
            families.append(
                FamilySummary(
                    family.name,
                    int(group["charges"][()].sum()) - family.charge,
                    len(group["grid_owner"]),
                    {name: sum(split == name for split, _, _ in rows) for name in SPLITS},
                    {name: sum(len(t) for split, t, _ in rows if split == name) for name in SPLITS},
                    dict(sum((Counter(rejected) for _, _, rejected in rows), Counter())),
                    failures.get(family.name, {}),
                    _two(samples, "kinetic_energy", np.min, np.max),
                    _two(perturbed, "density_change", np.median, np.max),
                )
            )
        versions = json.loads(file.attrs["versions"])
    return Summary(path, path.stat().st_size / 1e6, config, versions, tuple(families))


def _two(
    table: np.ndarray | None, column: str, first: Any, second: Any
) -> tuple[float, float] | None:
    """Two statistics of a column, or nothing if there are no rows."""
    if table is None or not len(table):
        return None
    return float(first(table[column])), float(second(table[column]))
