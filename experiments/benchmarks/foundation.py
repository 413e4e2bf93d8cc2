"""Speed of the foundation as ratios, on one core unless told otherwise.

Density optimization of two-electron molecules against PySCF's RKS, alternating in one process; one
energy and gradient of water against 20 ms and against the time its bytes need at copy bandwidth.
Writes foundation.md beside this file.

    python experiments/benchmarks/foundation.py [--cores 1]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cores", type=int, default=1)
CORES = parser.parse_args().cores
# Before JAX and PySCF start their thread pools.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
os.environ["OMP_NUM_THREADS"] = str(CORES)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pyscf  # noqa: E402
from machine import processor  # noqa: E402
from pyscf import dft  # noqa: E402

import kineticnet_jax as kn  # noqa: E402
from kineticnet_jax.files import complete_file  # noqa: E402
from kineticnet_jax.reference import build_mole  # noqa: E402

jax.config.update("jax_enable_x64", True)

MOLECULES = {
    "H2": ("H 0 0 0\nH 0 0 0.74", 0),
    "H3+": ("H 0 0 0\nH 0.87 0 0\nH 0.435 0.753442 0", 1),
}
WATER = "3\n\nO 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692"
REPEATS = 15


def median_time(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, run in turn after one warm-up each."""
    for function in functions:
        jax.block_until_ready(function())
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[i].append(time.perf_counter() - start)
    return [statistics.median(column) for column in times]


def optimization_rows() -> list[str]:
    """Warm optimization from superposed atoms against RKS of the same molecule."""
    rows = []
    for name, (atoms, charge) in MOLECULES.items():
        text = f"{len(atoms.splitlines())}\n\n{atoms}"
        molecule = kn.Molecule.from_string(text, charge)
        system = kn.prepare(molecule)
        mol = build_mole(molecule, "cc-pvdz")

        def kohn_sham(mol=mol) -> float:
            return dft.RKS(mol, xc="b88,lyp").kernel()

        def optimize(system=system, method="lbfgs") -> float:
            return kn.optimize_density(system, "vw", "blyp", "sad", method=method).energy

        def prepare(molecule=molecule) -> kn.System:
            return kn.prepare(molecule)

        rks, lbfgs, newton, preparation = median_time(
            kohn_sham, optimize, lambda run=optimize: run(method="newton"), prepare
        )
        for method, seconds in (("lbfgs", lbfgs), ("newton", newton)):
            rows.append(
                f"| {name} | {method} | {1e3 * seconds:.0f} | {1e3 * rks:.0f} | "
                f"{seconds / rks:.2f} | {(seconds + preparation) / rks:.2f} |"
            )
    return rows


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy far larger than the caches."""
    source = np.ones(2**26)
    target = np.zeros_like(source)
    (seconds,) = median_time(lambda: np.copyto(target, source))
    return 2 * source.nbytes / seconds


def evaluation_rows(bandwidth: float) -> list[str]:
    """One energy and gradient of water at level 3."""
    molecule = kn.Molecule.from_string(WATER)
    rows = []

    @jax.jit
    def evaluate(energy, density):
        return jax.value_and_grad(lambda density: energy(density))(density)

    for density_basis in ("reference", "even-tempered"):
        system = kn.prepare(molecule, density_basis=density_basis)
        energy, density = kn.total_energy(system, "tf+vw"), kn.initial_density(system)
        (seconds,) = median_time(lambda e=energy, d=density: evaluate(e, d))
        # Basis samples and Coulomb operator are read once forward and once backward.
        arrays = (system.density_basis.on_grid.chunks, system.hartree_operator.chunks)
        size = 2 * sum(array.nbytes for array in arrays)
        rows.append(
            f"| {density_basis} | {len(density.coefficients)} | {len(system.grid.weights)} | "
            f"{1e3 * seconds:.1f} | {size / 1e6:.0f} | {1e3 * size / bandwidth:.1f} | "
            f"{seconds * bandwidth / size:.2f} |"
        )
    return rows


def main() -> None:
    """Measures everything and writes the table."""
    bandwidth = copy_bandwidth()
    lines = [
        "# Speed of the foundation",
        "",
        f"Written by `python experiments/benchmarks/foundation.py --cores {CORES}`: medians of "
        f"{REPEATS} warm runs.",
        f"{CORES} core(s) of {processor()}, copy bandwidth {bandwidth / 1e9:.1f} GB/s (bytes read "
        f"and written), jax {jax.__version__}, PySCF {pyscf.__version__}, float64.",
        "",
        "## Density optimization against Kohn–Sham",
        "",
        "BLYP/cc-pVDZ, functional vw in the reference basis, grid level 3 for both, from",
        "superposed atoms to a gradient norm of 1e-6. RKS with PySCF's defaults. Limit of the",
        "ratio: 1.0.",
        "",
        "| molecule | method | optimization (ms) | RKS (ms) | ratio | ratio with preparation |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *optimization_rows(),
        "",
        "## One energy and gradient of water",
        "",
        "BLYP, tf+vw, grid level 3. The bytes are those of the basis samples and of the Coulomb",
        "operator, each read twice; last column: measured time over the time for these bytes at",
        "copy bandwidth. Limit for the reference basis: 20 ms on one core.",
        "",
        "| density basis | functions | points | time (ms) | bytes (MB) | bytes (ms) | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *evaluation_rows(bandwidth),
    ]
    text = "\n".join(lines) + "\n"
    with complete_file(Path(__file__).with_suffix(".md")) as path:
        path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
