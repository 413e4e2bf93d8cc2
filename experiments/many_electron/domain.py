"""How well a functional knows what it was trained on: distances of densities from the training.

Run `python experiments/many_electron/domain.py four-electron/test-4.h5 four-electron` after `run.py
four-electron`, or with the folder of another functional; it prints a Markdown table. Distances of
the test samples, then the largest over the atoms for Kohn-Sham densities of one test geometry,
stretched and compressed, and for the density that has no Pauli repulsion. Then those of densities
that an optimization of the same geometry visits: superposed atoms, and after some steps.
"""

import argparse
import os
from pathlib import Path

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np

import kineticnet_jax as kn
from kineticnet_jax.data.generate import ground_state
from kineticnet_jax.functionals.domain import Domain
from kineticnet_jax.optimize import UNFAMILIAR

SCALES = (0.7, 1.0, 1.5)
"""Of all distances between nuclei."""

STRIDE, STOPS = 2, 5
"""Steps after which a visited density is looked at, and how often."""


def test_distances(domain: Domain, dataset: kn.Dataset, family: str) -> np.ndarray:
    """The largest one over the atoms of each test sample."""
    found = []
    for geometry, numbers in dataset.select(family=family).by_geometry():
        molecule, grid = dataset.molecule(geometry), dataset.space(geometry).grid
        for number in numbers:
            density, _ = dataset.density(geometry, number)
            found.append(np.max(domain.distances(molecule, grid, density)))
    return np.array(found)


def other_distances(
    functional: kn.LearnedFunctional, domain: Domain, dataset: kn.Dataset, family: str
) -> list[float]:
    """Kohn-Sham densities at each of SCALES, the one without Pauli repulsion, visited ones."""
    config = dataset.config
    molecule = dataset.molecule(dataset.select(family=family).geometries[0])

    def largest(system: kn.System, density: kn.Density) -> float:
        sampled = density.on_grid(system)
        return float(np.max(domain.distances(system.molecule, system.grid, sampled)))

    found = []
    for scale in SCALES:
        scaled = kn.Molecule(molecule.charges, scale * molecule.positions, molecule.charge)
        system = kn.prepare(scaled, config.basis, config.density_basis, config.grid_level)
        exact = ground_state(config, scaled)
        found.append(largest(system, kn.OrbitalDensity.from_kohn_sham(exact)))
    system = kn.prepare(molecule, config.basis, config.density_basis, config.grid_level)
    found.append(largest(system, kn.optimize_density(system, "vw", config.xc).density))
    density = kn.initial_density(system, "sad")
    found.append(largest(system, density))
    for _ in range(STOPS):
        density = kn.optimize_density(
            system, functional, config.xc, density, max_steps=STRIDE
        ).density
        found.append(largest(system, density))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="test data of a run")
    parser.add_argument("functional", help="name or folder")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    dataset = kn.Dataset(options.data)
    functional = kn.load_functional(options.functional)
    if not isinstance(functional, kn.LearnedFunctional) or functional.domain is None:
        parser.error(f"'{options.functional}' does not know what it was trained on; train it again")
    scaled = "".join(f" × {scale:g} |" for scale in SCALES)
    visited = "".join(f" {STRIDE * stop} steps |" for stop in range(1, STOPS + 1))
    heads = f"| family | median | 99 % | above {UNFAMILIAR:g} (%) |{scaled} without T_P | sad |"
    print(heads + visited)
    print("| --- |" + " ---: |" * (len(SCALES) + STOPS + 5))
    for family in dataset.families:
        found = test_distances(functional.domain, dataset, family)
        cells = [np.median(found), np.percentile(found, 99), 100 * np.mean(found > UNFAMILIAR)]
        cells += other_distances(functional, functional.domain, dataset, family)
        print(f"| {family} |" + "".join(f" {cell:.2f} |" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
