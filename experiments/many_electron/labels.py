"""How wrong the labels of the potential are on coarse grids and in small bases of the orbitals.

Run `python experiments/many_electron/labels.py four-electron`; it prints a Markdown table. The same
geometries and potentials are labelled on grids of several levels and with orbitals in several
bases. The derivatives of T_P are compared with those on the finest grid, and with those of orbitals
in the basis of √n, as the energy an optimizer would wrongly gain (mHa).
"""

import argparse
import dataclasses
import logging
import os
import tempfile
from pathlib import Path

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np

import kineticnet_jax as kn
from kineticnet_jax.data.config import DataConfig, SplitFractions, load_config
from kineticnet_jax.data.run import generate
from kineticnet_jax.data.spaces import residual_energy
from kineticnet_jax.data.store import GeometryRecord

HERE = Path(__file__).parent
LEVELS = (1, 2, 3, 5)
BASES = ("unc-cc-pvtz", "unc-aug-cc-pvtz", "even-tempered-2.2")


def smaller(config: DataConfig, geometries: int) -> DataConfig:
    """A few geometries, all of whose samples are kept, so that all variants have the same ones."""
    families = (dataclasses.replace(family, geometries=geometries) for family in config.families)
    return dataclasses.replace(
        config,
        families=tuple(families),
        potentials_per_geometry=8,
        limits=dataclasses.replace(config.limits, kinetic=1.0, electrons=1.0, sqrt_fit=1.0),
        splits=SplitFractions(1.0, 0.0, 0.0),
    )


def labelled(config: DataConfig) -> kn.Dataset:
    """The labels of a configuration, kept nowhere but in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.h5"
        generate(config, path)
        return kn.Dataset(path)


def pauli_gradient(record: GeometryRecord, numbers: list[int]) -> np.ndarray:
    """Derivatives of T_P along 2√n u_k: those of T_s without the fitted T_vW."""
    along = 2 * record.density_kinetic_eigenvalues * record.sqrt_coefficients[numbers]
    return record.potential_gradient[numbers] - along


def errors(one: kn.Dataset, best: kn.Dataset) -> dict[str, list[float]]:
    """Differences of the labels of the potential in mHa, by family."""
    found: dict[str, list[float]] = {name: [] for name in best.families}
    for geometry, numbers in best.by_geometry():
        record, other = best.record(geometry), one.record(geometry)
        difference = pauli_gradient(other, numbers) - pauli_gradient(record, numbers)
        x = record.sqrt_coefficients[numbers]
        overlaps = np.sum(x * difference, axis=1) / np.sum(x**2, axis=1)
        energies = jax.vmap(residual_energy, (0, None))(
            jnp.asarray(difference - overlaps[:, None] * x),
            jnp.asarray(record.density_kinetic_eigenvalues),
        )
        found[record.family] += (1e3 * energies).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rung", choices=sorted(path.stem for path in HERE.glob("*.toml")))
    parser.add_argument("--geometries", type=int, default=2, help="of each family")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, force=True)
    jax.config.update("jax_enable_x64", True)
    config = smaller(load_config(HERE / f"{options.rung}.toml"), options.geometries)
    *coarse, finest = LEVELS
    best = labelled(dataclasses.replace(config, grid_level=finest))
    columns = {}
    for level in coarse:
        columns[f"level {level}"] = errors(
            labelled(dataclasses.replace(config, grid_level=level)), best
        )
    best = labelled(dataclasses.replace(config, basis=str(config.density_basis)))
    for basis in BASES:
        columns[basis] = errors(labelled(dataclasses.replace(config, basis=basis)), best)
    print("| family |" + "".join(f" {name} (mHa) |" for name in columns))
    print("| --- |" + " ---: |" * len(columns))
    for family in config.families:
        means = (f" {np.mean(column[family.name]):.3f} |" for column in columns.values())
        print(f"| {family.name} |" + "".join(means), flush=True)


if __name__ == "__main__":
    main()
