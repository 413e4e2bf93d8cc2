"""How fast KineticNet is, and how time and memory grow with the molecule.

Run `python experiments/benchmarks/network.py`; it writes network.md beside itself. Everything is
the size `small` in float32 with random parameters; times are those of one value and gradient with
respect to the density, compiled before. Each cluster is computed in a process of its own, whose
peak memory is the largest it ever had, compiler included.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

import kineticnet_jax as kn
from kineticnet_jax.nn.config import network_config
from kineticnet_jax.nn.convolution import atoms_to_points, build_operators, points_to_atoms
from kineticnet_jax.nn.neighbors import all_neighbors, find_neighbors
from kineticnet_jax.nn.network import Geometry, KineticNet

SIZES = (1, 2, 5, 10, 20, 40)
MOLECULAR_VOLUME = 29.9 / 0.529177**3
"""Of water at room temperature in bohr³."""

Array = Any


def cluster(size: int) -> kn.Molecule:
    """Water molecules in random orientations on the sites of a cubic lattice nearest its centre."""
    generator = np.random.default_rng(size)
    water = kn.Molecule.from_xyz(Path(__file__).parents[1] / "molecules" / "water.xyz")
    sites = np.stack(np.meshgrid(*3 * [np.arange(-4, 5) + 0.5])).reshape(3, -1).T
    sites = sites[np.argsort(np.linalg.norm(sites, axis=1), kind="stable")[:size]]
    centred = water.positions - water.positions[0]
    positions = []
    for site in sites * MOLECULAR_VOLUME ** (1 / 3):
        rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
        positions.append(centred @ rotation.T + site)
    return kn.Molecule(np.tile(water.charges, size), np.concatenate(positions))


def superposed_density(molecule: kn.Molecule, points: np.ndarray) -> np.ndarray:
    """A sum of exponentials around the nuclei, with the number of electrons of the atoms."""
    n = np.zeros(len(points))
    for charge, position in zip(molecule.charges, molecule.positions, strict=True):
        zeta = 1.0 if charge == 1 else 2.2
        r = np.linalg.norm(points - position, axis=1)
        n += charge * zeta**3 / np.pi * np.exp(-2 * zeta * r)
    return n


def prepare(size: int, path: Path) -> None:
    """Grid and density of a cluster, in a process of its own."""
    molecule = cluster(size)
    grid = kn.molecular_grid(molecule, 1)
    points = np.asarray(grid.points)
    n = superposed_density(molecule, points)
    arrays = {"points": points, "weights": np.asarray(grid.weights), "n": n}
    np.savez(path, charges=molecule.charges, positions=molecule.positions, **arrays)


def load(path: Path) -> tuple[kn.Molecule, kn.Grid, kn.GridDensity]:
    with np.load(path) as stored:
        molecule = kn.Molecule(stored["charges"], stored["positions"])
        points, weights, n = (
            jnp.asarray(stored[name].astype(np.float32)) for name in ("points", "weights", "n")
        )
    return molecule, kn.Grid(points, weights), kn.GridDensity(n, jnp.zeros((len(n), 3), n.dtype))


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a call, after one that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@partial(jax.jit, static_argnums=0)
def value_and_gradient(
    net: KineticNet,
    params: Array,
    molecule: kn.Molecule,
    grid: kn.Grid,
    density: kn.GridDensity,
    geometry: Geometry | None,
) -> Array:
    def energy(n: Array) -> Array:
        sampled = kn.GridDensity(n, density.grad_n)
        return net.apply(params, molecule, grid, sampled, geometry).energy

    return jax.value_and_grad(energy)(density.n)


def measure_cluster(path: Path) -> dict[str, float]:
    """Time and memory of a cluster; filters are evaluated on the way."""
    molecule, grid, density = load(path)
    net = KineticNet(network_config("small", (1, 8)))
    params = net.init(jax.random.key(0))
    start = time.perf_counter()
    neighbors = find_neighbors(
        molecule.positions, np.asarray(grid.points), net.config.filters.cutoff
    )
    search = time.perf_counter() - start
    geometry = Geometry(neighbors)
    repeats = 5 if len(molecule) > 40 else 20
    step = partial(value_and_gradient, net, params, molecule, grid, density, geometry)
    inside = cKDTree(grid.points).query_ball_point(molecule.positions, net.config.filters.cutoff)
    useful = sum(len(points) for points in inside)
    done = sum(chunks.points.size * chunks.atoms.shape[-1] for chunks in neighbors.chunks)
    return {
        "atoms": len(molecule),
        "points": len(grid.weights),
        "search": search,
        "seconds": seconds(step, repeats),
        "pairs": useful,
        "padding": 1 - useful / done,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "arrays": sum(leaf.nbytes for leaf in jax.tree.leaves((grid, density))) / 1e9,
    }


def measure_water(path: Path) -> dict[str, float]:
    """Times of the parts of the network on one water molecule, and floating-point rates."""
    molecule, grid, density = load(path)
    config = network_config("small", (1, 8))
    net = KineticNet(config)
    params = net.init(jax.random.key(0))
    positions = jnp.asarray(molecule.positions, jnp.float32)
    neighbors = all_neighbors(len(molecule), len(grid.weights))
    build = jax.jit(lambda p, r: build_operators(config.filters, neighbors, p, r))
    stored = Geometry(neighbors, build(grid.points, positions))
    matrix = jax.random.normal(jax.random.key(0), (1024, 1024), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    result = {"matmul": 2 * 1024**3 / seconds(lambda: multiply(matrix, matrix), 50)}
    arguments = (molecule, grid, density)
    for name, geometry in (("stored", stored), ("on the way", Geometry(neighbors))):
        step = partial(value_and_gradient, net, params, *arguments, geometry)
        result[f"network, {name}"] = seconds(step, 50)
        result[f"convolutions, {name}"] = _convolution_seconds(config, geometry, grid, positions)
    alone = KineticNet(network_config("small", (1, 8), interactions=0))
    step = partial(value_and_gradient, alone, alone.init(jax.random.key(0)), *arguments, stored)
    result["without interactions, stored"] = seconds(step, 50)
    # Encoder and decoder, each once forward and once backward.
    pairs = len(molecule) * len(grid.weights)
    result["flops"] = 4 * 2 * pairs * config.filters.rows * config.channels
    result["points"] = len(grid.weights)
    return result


def _convolution_seconds(config: Any, geometry: Geometry, grid: kn.Grid, positions: Array) -> float:
    """Time of encoder and decoder, each forward and backward, without the networks around them."""
    neighbors, operators = geometry.neighbors, geometry.operators
    where = (config.filters, neighbors, grid.points, positions)
    signal = jnp.ones((len(grid.weights), config.channels), jnp.float32)
    coefficients = jnp.ones((len(positions), config.filters.rows, config.channels), jnp.float32)

    @jax.jit
    def encoder(signal: Array, operators: Array) -> Array:
        def square(signal: Array) -> Array:
            return jnp.sum(points_to_atoms(*where, jnp.transpose, signal, operators) ** 2)

        return jax.grad(square)(signal)

    @jax.jit
    def decoder(coefficients: Array, operators: Array) -> Array:
        def square(coefficients: Array) -> Array:
            def read(field: Array, _: Array) -> Array:
                return jnp.sum(field**2, axis=0)

            return jnp.sum(atoms_to_points(*where, coefficients, read, grid.weights, operators))

        return jax.grad(square)(coefficients)

    return seconds(lambda: encoder(signal, operators), 50) + seconds(
        lambda: decoder(coefficients, operators), 50
    )


def in_process(command: str, path: Path, size: int = 0) -> dict[str, float]:
    """Runs one of the measurements in a fresh process and returns its result."""
    arguments = [sys.executable, __file__, "--run", command, "--file", str(path), "--n", str(size)]
    environment = os.environ | {"JAX_ENABLE_X64": "1" if command == "prepare" else "0"}
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def report(water: dict[str, float], clusters: list[dict[str, float]]) -> str:
    kinds = ("stored", "on the way")
    rate = {
        name: water["flops"] / water[f"convolutions, {name}"] / water["matmul"] for name in kinds
    }
    large = [row for row in clusters if row["atoms"] >= 15]
    n, t = (np.log([row[key] for row in large]) for key in ("atoms", "seconds"))
    exponent = np.polyfit(n, t, 1)[0]
    ends = (t[-1] - t[0]) / (n[-1] - n[0])
    names = ("jax", "jaxlib", "e3nn-jax")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    total = {name: 1e3 * water[f"network, {name}"] for name in kinds}
    part = {name: 1e3 * water[f"convolutions, {name}"] for name in kinds}
    alone = 1e3 * water["without interactions, stored"]
    lines = [
        "# Speed and scaling of KineticNet",
        "",
        "Written by `python experiments/benchmarks/network.py`. Size `small`, float32, one value",
        f"and gradient with respect to the density. {os.cpu_count()} cores,",
        f"{platform.machine()}, Python {platform.python_version()}, {versions}.",
        "",
        f"## One water molecule, grid level 1 ({water['points']:.0f} points)",
        "",
        f"A plain float32 matrix product (1024³) reaches {water['matmul'] / 1e9:.0f} Gflop/s in",
        "the same process. The convolutions, encoder and decoder forward and backward, need",
        f"{water['flops'] / 1e9:.2f} Gflop.",
        "",
        "| | filters stored (density optimization) | filters evaluated on the way |",
        "| --- | ---: | ---: |",
        "| value and gradient (limit 60 ms) | "
        + " | ".join(f"{total[name]:.1f} ms" for name in kinds)
        + " |",
        "| of it the convolutions | " + " | ".join(f"{part[name]:.1f} ms" for name in kinds) + " |",
        "| their rate, in units of the matrix product (limit 35 %) | "
        + " | ".join(f"{rate[name]:.0%}" for name in kinds)
        + " |",
        "",
        "Where the rest goes, with stored filters: interaction layers "
        f"{total['stored'] - alone:.1f} ms,",
        "pointwise networks (embedding and head) and everything else "
        f"{alone - part['stored']:.1f} ms.",
        "With filters evaluated on the way, the difference is exponentials, harmonics and their",
        "products, which are computed again in the backward pass, as is the decoder.",
        "",
        "## Clusters (H2O)_n, grid level 1",
        "",
        "Molecules at the density of water, filters evaluated on the way.",
        "",
        f"- exponent of the time from n = 5 to 40: {exponent:.2f} (fit), {ends:.2f} (ends);",
        "  limit 1.15",
        f"- peak memory at n = 40: {clusters[-1]['peak']:.2f} GB (limit 4 GB)",
        "",
        "| n | points | pairs of point and atom (million) | empty places | neighbour search (s) | "
        "time (s) | Gflop/s of the convolutions | peak memory (GB) | inputs (GB) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    per_pair = water["flops"] / (3 * water["points"])
    for row in clusters:
        lines.append(
            f"| {row['atoms'] // 3:.0f} | {row['points']:,.0f} | {row['pairs'] / 1e6:.2f} | "
            f"{row['padding']:.0%} | {row['search']:.2f} | {row['seconds']:.3f} | "
            f"{row['pairs'] * per_pair / row['seconds'] / 1e9:.0f} | {row['peak']:.2f} | "
            f"{row['arrays']:.3f} |"
        )
    lines += [
        "",
        "Pairs are those within the cutoff; empty places are what blocks of points compute beside",
        "them. The number of pairs for each molecule still grows from n = 5 to 40, because fewer",
        "molecules are at the surface. The rate counts pairs within the cutoff and the whole time.",
        "Peak memory is that of the process, with JAX and its compiler.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", choices=("prepare", "cluster", "water"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == "prepare":
        prepare(options.n, options.file)
        print("{}")
        return
    if options.run is not None:
        measure = measure_cluster if options.run == "cluster" else measure_water
        print(json.dumps(measure(options.file)))
        return
    clusters = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"{size}.npz"
            in_process("prepare", path, size)
            if size == 1:
                water = in_process("water", path)
            clusters.append(in_process("cluster", path))
            print(f"n = {size}: {clusters[-1]}", flush=True)
    text = report(water, clusters)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
