"""How fast reference data are generated: samples a minute, written to disk.

Run `python experiments/benchmarks/reference_data.py`; it writes reference_data.md beside itself.
Only perturbed samples are counted, not the ground state of every geometry. Beside it stands the
time of one Kohn-Sham calculation by PySCF in the same basis, on one thread, before and after.
"""

import argparse
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import jax
import numpy as np

from kineticnet_jax.data.config import DataConfig, Family, Limits
from kineticnet_jax.data.generate import ground_state
from kineticnet_jax.data.geometries import draw_geometries
from kineticnet_jax.data.run import Progress, generate
from kineticnet_jax.data.summary import summarize

jax.config.update("jax_enable_x64", True)

POTENTIALS = 8
BOND = {"r": (0.4, 3.0)}
WATER = {"r1": (0.8, 1.25), "r2": (0.8, 1.25), "a": (85.0, 130.0)}
# The even-tempered basis with ratio 2 fits √n of contracted cc-pVDZ to 0.5 %, above the default.
LIMITS = Limits(sqrt_fit=8e-3)


def config(name: str, zmatrix: str, variables: dict, geometries: int) -> DataConfig:
    """BLYP/cc-pVDZ, one-shot, grid level 1."""
    family = Family(name, zmatrix, geometries, variables)
    return DataConfig(
        name, (family,), potentials_per_geometry=POTENTIALS, grid_level=1, limits=LIMITS
    )


def kohn_sham_seconds(data: DataConfig) -> float:
    """Median time of the Kohn-Sham calculation of some of its geometries, on one thread."""
    seconds = []
    for task in draw_geometries(data)[:8]:
        start = time.perf_counter()
        ground_state(data, task.molecule)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def measure(data: DataConfig, folder: Path, workers: int) -> dict[str, float]:
    """Generates a data set and returns its rates."""
    history: list[tuple[float, Progress]] = []
    before = kohn_sham_seconds(data)
    start = time.perf_counter()
    path = folder / f"{data.name}.h5"
    generate(
        data,
        path,
        workers,
        callback=lambda progress: history.append((time.perf_counter() - start, progress)),
    )
    total = time.perf_counter() - start
    after = kohn_sham_seconds(data)
    summary = summarize(path)
    geometries = data.families[0].geometries
    samples = summary.samples - geometries
    (first_time, first), (last_time, last) = history[len(history) // 4], history[-1]
    share = samples / summary.samples
    rate = 60 * share * (last.samples - first.samples) / (last_time - first_time)
    return {
        "samples": samples,
        "rejected": sum(summary.rejected.values()),
        "seconds": total,
        "rate": rate,
        "whole": 60 * samples / total,
        "kilobytes": 1e3 * summary.megabytes / geometries,
        "reference": 0.5 * (before + after),
        "ratio": 0.5 * (before + after) / (workers * 60 / rate),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of geometries")
    options = parser.parse_args()
    cases = (
        (config("H2O", "O\nH 1 r1\nH 1 r2 2 a", WATER, round(400 * options.scale)), 1500),
        (config("H2", "H\nH 1 r", BOND, round(1600 * options.scale)), 5000),
    )
    lines = [
        "# Rate of reference data",
        "",
        "`python experiments/benchmarks/reference_data.py`: BLYP/cc-pVDZ, one-shot, grid level 1, "
        f"{POTENTIALS} potentials a geometry, {options.workers} workers of one thread, written to "
        "disk. Rate: after the first quarter of the geometries; whole run: with the start of the "
        "workers, compilation and the final merge. The last column says how many samples are made "
        "in the time of one PySCF RKS calculation of the same molecule on one thread.",
        "",
        "| molecule | samples | rejected | rate (1/min) | target | whole run (1/min) | kB/geometry "
        "| RKS (s) | samples per RKS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for data, target in cases:
            result = measure(data, Path(folder), options.workers)
            print(data.name, {name: round(value, 3) for name, value in result.items()}, flush=True)
            lines.append(
                f"| {data.name} | {result['samples']:.0f} | {result['rejected']:.0f} "
                f"| {result['rate']:.0f} | {target} | {result['whole']:.0f} "
                f"| {result['kilobytes']:.0f} | {result['reference']:.3f} | {result['ratio']:.1f} |"
            )
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "pyscf", "h5py"))
    lines += ["", f"{os.cpu_count()} cores, {platform.machine()}, {packages}.", ""]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
