"""How wrong the labels of the potential are on coarse grids, for the data of a rung.

Run `python experiments/many_electron/labels.py four-electron`; it prints a Markdown table. The
same geometries and potentials are labelled on grids of several levels, and the derivatives of T_s
compared with those of the finest one, as the energy an optimizer would wrongly gain (mHa).
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

HERE = Path(__file__).parent
LEVELS = (1, 2, 3, 5)


def smaller(config: DataConfig, geometries: int, level: int) -> DataConfig:
    """A few geometries, all of whose samples are kept, so that levels have the same ones."""
    families = (dataclasses.replace(family, geometries=geometries) for family in config.families)
    return dataclasses.replace(
        config,
        families=tuple(families),
        potentials_per_geometry=2,
        grid_level=level,
        limits=dataclasses.replace(config.limits, kinetic=1.0, electrons=1.0, sqrt_fit=1.0),
        splits=SplitFractions(1.0, 0.0, 0.0),
    )


def errors(coarse: kn.Dataset, fine: kn.Dataset) -> dict[str, list[float]]:
    """Differences of the labels of the potential in mHa, by family."""
    found: dict[str, list[float]] = {name: [] for name in fine.families}
    for geometry, numbers in fine.by_geometry():
        record, other = fine.record(geometry), coarse.record(geometry)
        difference = other.potential_gradient[numbers] - record.potential_gradient[numbers]
        energies = jax.vmap(residual_energy, (0, None))(
            jnp.asarray(difference), jnp.asarray(record.density_kinetic_eigenvalues)
        )
        found[record.family] += (1e3 * energies).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rung", choices=sorted(path.stem for path in HERE.glob("*.toml")))
    parser.add_argument("--geometries", type=int, default=3, help="of each family")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, force=True)
    jax.config.update("jax_enable_x64", True)
    config = load_config(HERE / f"{options.rung}.toml")
    data = {}
    with tempfile.TemporaryDirectory() as folder:
        for level in LEVELS:
            path = Path(folder) / f"level-{level}.h5"
            generate(smaller(config, options.geometries, level), path)
            data[level] = kn.Dataset(path)
        *coarse, finest = LEVELS
        columns = {level: errors(data[level], data[finest]) for level in coarse}
    print("| family |" + "".join(f" level {level} (mHa) |" for level in coarse))
    print("| --- |" + " ---: |" * len(coarse))
    for family in config.families:
        means = (f" {np.mean(columns[level][family.name]):.3f} |" for level in coarse)
        print(f"| {family.name} |" + "".join(means), flush=True)


if __name__ == "__main__":
    main()
