"""How fast training is, and where its time goes: labels, forward, backward, least squares.

Run `python experiments/benchmarks/training.py DATA.h5` with a data set of two electrons (made by
`kineticnet generate experiments/configs/two-electron.toml --out DATA.h5`); it writes training.md
beside itself. A step of `experiments/two_electron/train.toml` is timed as a whole and in parts,
with labels that are stored and with labels of fresh potentials.

With `--devices N` a step with N times as many geometries is timed on N devices and printed.
"""

import argparse
import dataclasses
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import kineticnet_jax as kn
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.network import KineticNet
from kineticnet_jax.train.config import TrainConfig, load_train_config
from kineticnet_jax.train.groups import Group, GroupReader, over_geometries
from kineticnet_jax.train.loss import prepare_geometry, sample_errors
from kineticnet_jax.train.processes import device_mesh, replicate, spread
from kineticnet_jax.train.step import group_residuals, initial_state, make_optimizer, make_step

CONFIG = Path(__file__).parents[1] / "two_electron" / "train.toml"


def seconds(function: Callable[..., Any], *arguments: Any, repetitions: int = 5) -> float:
    """Median time of a call after the first one, which compiles."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def at_once(function: Callable[..., Any], batch: list[Group], *arguments: Any) -> list[Any]:
    """A function of all groups, on all cores as in a step."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(partial(function, *arguments), batch))


def draw(config: TrainConfig, dataset: kn.Dataset) -> tuple[LearnedFunctional, list[Group]]:
    """A functional with random parameters, and the batch of a step."""
    random = np.random.default_rng(0)
    reader = GroupReader(dataset, fresh=config.source == "fresh")
    elements = sorted({int(z) for name in config.families for z in dataset.family(name).charges})
    network = config.network.config(tuple(elements), config.target)
    template = LearnedFunctional(network, KineticNet(network).init(jax.random.key(0)))
    batch = []
    for name, count in config.families.items():
        geometries = [int(g) for g in random.choice(reader.families[name], count)]
        samples = random.integers(2**32, size=(count, config.samples))
        if not reader.fresh:
            numbers = [reader.numbers[g] for g in geometries]
            samples = np.array([random.choice(n, config.samples, replace=False) for n in numbers])
        stretch = np.full(count, config.grid_stretch)
        batch.append(reader.read(geometries, samples, stretch, config.grid_levels.get(name)))
    return template, batch


def step_seconds(
    config: TrainConfig, template: LearnedFunctional, batch: list[Group], mesh: Mesh | None = None
) -> float:
    """Seconds of a step."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = initial_state(config.optimizer, optimizer, template.params)
    if mesh is not None:
        state, batch = replicate(state, mesh), [spread(group, mesh) for group in batch]
    step = make_step(
        template,
        config.optimizer,
        optimizer,
        config.weights,
        mesh=mesh,
        dtype=config.precision,
        at_a_time=config.at_a_time,
    )
    return seconds(step, state, tuple(batch))


def measure(config: TrainConfig, dataset: kn.Dataset) -> dict[str, float]:
    """Seconds of a step and of its parts, and its number of samples."""
    template, batch = draw(config, dataset)

    @jax.jit
    def labels(group: Group) -> Any:
        def geometry(_: None, part: Group) -> tuple[None, Any]:
            return None, part.targets()

        return over_geometries(geometry, None, group)[1]

    @jax.jit
    def forward(group: Group) -> Any:
        def geometry(_: None, part: Group) -> tuple[None, Any]:
            site, targets = prepare_geometry(template, part, config.precision)
            return None, sample_errors(site, params, targets, False, config.at_a_time)

        return over_geometries(geometry, None, group)[1]

    backward = jax.jit(
        partial(
            group_residuals,
            template,
            config.weights,
            config.precision,
            config.at_a_time,
            config.optimizer.gauss_newton,
        )
    )
    start = (template.params, jax.random.key(0), jnp.zeros((), int))
    times = {
        "labels": seconds(at_once, labels, batch),
        "forward": seconds(at_once, forward, batch),
        "backward": seconds(at_once, backward, batch, *start),
    }
    times["step"] = step_seconds(config, template, batch)
    times["samples"] = config.samples * sum(config.families.values())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data set of two electrons")
    parser.add_argument("--devices", type=int, default=1, help="GPUs or cores")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", options.devices)
    config = load_train_config(CONFIG)
    dataset = kn.Dataset(options.data).select(split="train")
    if options.devices > 1:
        families = {name: options.devices * count for name, count in config.families.items()}
        more = dataclasses.replace(config, families=families)
        step = step_seconds(more, *draw(more, dataset), device_mesh(options.devices))
        rate = config.samples * sum(families.values()) / step
        print(f"{options.devices} devices: {rate:.1f} samples/s, {step:.2f} s a step")
        return
    lines = [
        "# Rate of training",
        "",
        "`python experiments/benchmarks/training.py DATA.h5`: a step of "
        "`experiments/two_electron/train.toml`. Labels: densities and kinetic energy densities on "
        "the grid, with fresh labels the ground states too. Forward: filters of every geometry and "
        "one value of T_s for each sample. "
        "Backward: derivatives by the parameters of T_s and of the potential along "
        f"{config.optimizer.gauss_newton.directions} direction(s), forward passes for them "
        "included. "
        "Rest: the least squares problem and the update.",
        "",
        "| labels | samples/s | step (s) | labels | forward | backward | rest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for source in ("stored", "fresh"):
        times = measure(dataclasses.replace(config, source=source), dataset)
        jax.clear_caches()
        step = times["step"]
        parts = (
            times["labels"],
            times["forward"] - times["labels"],
            times["backward"] - times["forward"],
            step - times["backward"],
        )
        print(source, {name: round(value, 3) for name, value in times.items()}, flush=True)
        shares = " | ".join(f"{100 * part / step:.0f} %" for part in parts)
        lines.append(f"| {source} | {times['samples'] / step:.1f} | {step:.2f} | {shares} |")
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "optax"))
    lines += ["", f"{os.cpu_count()} cores, {platform.machine()}, {packages}.", ""]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
