"""Molecules per second for many geometries of water at once against one at a time.

The two alternate in one process. Writes batch.md beside this file.

    python experiments/benchmarks/batch.py [--grid-level 3] [--most 64] [--functional FOLDER]
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

import kineticnet_jax as kn
from kineticnet_jax.files import complete_file

jax.config.update("jax_enable_x64", True)

WATER = "3\n\nO 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692"
SIZES = (1, 8, 64)
ALONE = 4
"""Molecules that are computed one at a time, before and after those at once."""


def geometries(count: int, seed: int) -> list[kn.Molecule]:
    """Water with all its atoms moved by 0.05 bohr or so."""
    water = kn.Molecule.from_string(WATER)
    noise = 0.05 * np.random.default_rng(seed).normal(size=(count, 3, 3))
    return [kn.Molecule.create(water.symbols, water.positions + shift) for shift in noise]


def seconds(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def one_at_a_time(
    molecules: list[kn.Molecule], functional: kn.Functional, level: int
) -> dict[str, float]:
    """Seconds per molecule for each part, with everything compiled."""
    parts: dict[str, list[float]] = {"preparation": [], "guess": [], "optimization": []}
    for molecule in molecules:
        made = {}

        def prepare(molecule=molecule, made=made) -> None:
            made["system"] = jax.block_until_ready(kn.prepare(molecule, grid_level=level))

        def guess(made=made) -> None:
            made["guess"] = jax.block_until_ready(kn.initial_density(made["system"]))

        def optimize(made=made) -> None:
            kn.optimize_density(made["system"], functional, guess=made["guess"])

        for name, function in zip(parts, (prepare, guess, optimize), strict=True):
            parts[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in parts.items()}


def compare(
    functional: kn.Functional, name: str, sizes: list[int], level: int
) -> tuple[list[str], dict[str, float]]:
    """Rows of the table, and seconds of one molecule at a time by part."""
    few = geometries(ALONE, 0)
    one_at_a_time(few[:1], functional, level)
    kn.optimize_densities(few[:1], functional, grid_level=level)
    alone = [one_at_a_time(few, functional, level)]
    rows = []
    for size in sizes:
        molecules = geometries(size, size)
        taken = seconds(
            lambda molecules=molecules: kn.optimize_densities(
                molecules, functional, grid_level=level
            )
        )
        alone.append(one_at_a_time(few, functional, level))
        around = alone[-2:]
        whole = statistics.mean(sum(parts.values()) for parts in around)
        loop = statistics.mean(parts["optimization"] for parts in around)
        rows.append(
            f"| {name} | {size} | {size / taken:.2f} | {1 / whole:.2f} | {size * whole / taken:.1f}"
            f" | {1 / loop:.2f} | {size * loop / taken:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows, {part: statistics.median(parts[part] for parts in alone) for part in alone[0]}


def main() -> None:
    """Measures everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--grid-level", type=int, default=3)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest number at once")
    parser.add_argument("--functional", type=Path, help="folder of a learned one for water")
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= options.most]
    functionals = {"tf+vw": kn.load_functional("tf+vw")}
    if options.functional is not None:
        functionals[options.functional.name] = kn.load_functional(options.functional)
    rows, parts = [], []
    for name, functional in functionals.items():
        measured, alone = compare(functional, name, sizes, options.grid_level)
        rows += measured
        parts.append(
            f"| {name} | " + " | ".join(f"{1e3 * value:.0f}" for value in alone.values()) + " |"
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "pyscf"))
    text = "\n".join(
        [
            "# Many molecules at once",
            "",
            "Written by `python experiments/benchmarks/batch.py "
            f"--grid-level {options.grid_level} --most {options.most}`.",
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"{versions}, float64.",
            "",
            "Geometries of water, even-tempered basis, BLYP, from superposed atoms to a gradient",
            f"norm of 1e-6, grid level {options.grid_level}, everything compiled. At once:",
            "`optimize_densities`, preparation included. One at a time: `prepare` and",
            f"`optimize_density`, medians of {ALONE} molecules before and after. The last two",
            "columns leave out preparation and guess of those one at a time, but not of those at",
            "once.",
            "",
            "| functional | at once | molecules/s | one at a time | ratio "
            "| one at a time, prepared | ratio |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "Where the time of one molecule goes, in ms:",
            "",
            "| functional | preparation | guess | optimization |",
            "| --- | ---: | ---: | ---: |",
            *parts,
            "",
        ]
    )
    with complete_file(Path(__file__).with_suffix(".md")) as path:
        path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
