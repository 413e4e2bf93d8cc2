"""A training that is small enough for tests, and what its folder says."""

import csv
import dataclasses

from tiny import NETWORK

from kineticnet_jax.train.config import TrainConfig
from kineticnet_jax.train.metrics import METRICS
from kineticnet_jax.train.step import OptimizerSettings

CONFIG = TrainConfig(
    "tiny",
    steps=12,
    # Message passing takes most of the time to compile.
    network=dataclasses.replace(NETWORK, interactions=0),
    optimizer=OptimizerSettings(warmup=2),
    # Another family would be compiled for itself.
    families={"H2": 1},
    samples=2,
    log_every=2,
    validate_every=4,
    validation_samples=2,
    checkpoint_every=4,
    emphasis=1.0,
    emphasis_every=6,
)


def rows(folder, name=METRICS):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(table):
    return [{k: v for k, v in row.items() if "second" not in k} for row in table]


def to_toml(config):
    """The configuration as TOML; None is left out."""
    lines = []

    def text(value):
        if isinstance(value, tuple):
            return str(list(value))
        return str(value).lower() if isinstance(value, bool) else repr(value)

    def add(content, prefix):
        here, later = [], []
        for key, value in content.items():
            if isinstance(value, dict):
                later.append((key, value))
            elif value is not None:
                here.append(f"{key} = {text(value)}")
        if prefix:
            lines.append(f"[{prefix}]")
        lines.extend(here)
        for key, value in later:
            add(value, f"{prefix}.{key}" if prefix else key)

    add(dataclasses.asdict(config), "")
    return "\n".join(lines)
