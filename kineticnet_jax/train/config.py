"""What a training run is: a frozen dataclass, read from a small TOML file."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kineticnet_jax.config import load, read_toml
from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.base import Target
from kineticnet_jax.grid import GRID_LEVELS
from kineticnet_jax.nn.config import SIZES, Inputs, NetworkConfig, network_config
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.train.curvature import CurvatureSettings
from kineticnet_jax.train.loss import LossWeights
from kineticnet_jax.train.moment_config import MomentTrainConfig
from kineticnet_jax.train.step import OptimizerSettings

Source = Literal["stored", "fresh"]
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class NetworkChoice:
    """A named size of network with changes; the elements are those of the data.

    Attributes:
        size: "tiny", "small" or "base".
        inputs: "density" for n alone, "gradient" for the reduced gradient too.
        filters: of the convolutions.
        channels: of the signals on the grid.
        features: channels of the atoms for each l.
        interactions: number of message passing layers.
        hidden: width of the pointwise networks.
        vectors: number of vector fields of the decoder.
    """

    size: str = "small"
    inputs: Inputs = "density"
    filters: Filters | None = None
    channels: int | None = None
    features: int | None = None
    interactions: int | None = None
    hidden: int | None = None
    vectors: int | None = None

    def config(self, elements: tuple[int, ...], target: Target) -> NetworkConfig:
        """The network for some elements.

        Raises:
            InputError: for an unknown size or settings no network can be made of.
        """
        changes = {name: value for name, value in vars(self).items() if value is not None}
        return network_config(changes.pop("size"), elements, target=target, **changes)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: of the functional that comes out.
        steps: number of steps.
        start: name or folder of a learned functional whose parameters are where training begins;
            its network must be this one, but for the elements: a new one begins with the parameters
            of the nearest. By default they are random.
        target: "total" to learn T_s, "pauli" to learn T_s - T_vW.
        network: its architecture.
        weights: of the losses.
        optimizer: learning rate and what belongs to it.
        curvature: of the total energy at ground states, raised where it is too low.
        geometries: of every family in a step.
        samples: densities of each of these geometries.
        at_a_time: of these densities that are processed together: one is best for the cache of a
            processor, all of them for a GPU.
        families: geometries of each family in a step, and no other families; by default
            `geometries` of every family of the data.
        kinds: names of the kinds of external potentials that are used, "ground state" among them;
            by default all.
        source: "stored" for the samples of the data set, "fresh" for new potentials in every step,
            with labels computed on the way.
        grid_stretch: largest factor by which the grid of a geometry is stretched or shrunk, anew in
            every step, so that the functional does not depend on the grid; 1 leaves it as it is.
        emphasis: of samples with large errors of T_s. Stored samples are drawn with a probability
            in proportion to 1 + emphasis · error / mean error of their family.
        emphasis_every: steps between two measurements of these errors, at all samples. The first
            one is after so many steps, or before the first step if there is a `start`; until then
            all samples are alike.
        grid_levels: levels of the grids of some families instead of that of the data.
        precision: of the network; labels are always made in float64.
        log_every: steps between two rows of the metrics.
        validate_every: steps between two validations.
        validation_samples: densities of each validation geometry.
        checkpoint_every: steps between two checkpoints; this and `emphasis_every` must be
            multiples of `log_every`.
        seed: of parameters and batches.
    """

    name: str
    steps: int
    start: str = ""
    target: Target = "total"
    network: NetworkChoice = field(default_factory=NetworkChoice)
    weights: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    curvature: CurvatureSettings = field(default_factory=CurvatureSettings)
    geometries: int = 1
    samples: int = 2
    at_a_time: int = 1
    families: dict[str, int] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    source: Source = "stored"
    grid_stretch: float = 1.25
    emphasis: float = 0.0
    emphasis_every: int = 800
    grid_levels: dict[str, int] = field(default_factory=dict)
    precision: Precision = "float32"
    log_every: int = 5
    validate_every: int = 100
    validation_samples: int = 8
    checkpoint_every: int = 50
    seed: int = 0

    def check(self) -> None:
        """Checks everything that can be checked without data.

        Raises:
            InputError: for the first value that makes no sense.
        """
        for name in (
            "steps",
            "geometries",
            "samples",
            "at_a_time",
            "log_every",
            "validate_every",
            "validation_samples",
            "checkpoint_every",
            "emphasis_every",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if self.samples % self.at_a_time:
            raise InputError(
                f"at_a_time must divide samples, but they are {self.at_a_time} and {self.samples}"
            )
        for name in ("checkpoint_every", *(("emphasis_every",) if self.emphasis else ())):
            if getattr(self, name) % self.log_every:
                raise InputError(
                    f"{name} must be a multiple of log_every, but they are "
                    f"{getattr(self, name)} and {self.log_every}"
                )
        weights = dataclasses.asdict(self.weights)
        if min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise InputError(f"loss weights must not be negative or all zero, but are {weights}")
        self.optimizer.check()
        self.curvature.check()
        if self.curvature.weight and self.optimizer.method != "gauss-newton":
            raise InputError(
                "curvatures are raised by gauss-newton steps only; set their weight to 0"
            )
        if self.families and min(self.families.values()) < 1:
            raise InputError(f"geometries of families must be positive, but are {self.families}")
        if not 1 <= self.grid_stretch <= 1.5:
            raise InputError(f"grid_stretch must be from 1 to 1.5, but is {self.grid_stretch:g}")
        if not 0 <= self.emphasis < math.inf:
            raise InputError(f"emphasis must be finite and not negative, but is {self.emphasis:g}")
        if self.emphasis > 0 and self.source == "fresh":
            raise InputError(
                "emphasis needs stored samples: set source to stored, or emphasis to 0"
            )
        for name, level in self.grid_levels.items():
            if level not in GRID_LEVELS:
                raise InputError(
                    f"grid_levels must be 0 to {GRID_LEVELS[-1]}, but is {level} for {name}"
                )
        if self.seed < 0:
            raise InputError(f"seed must not be negative, but is {self.seed}")
        if self.network.size not in SIZES:
            raise unknown_name("network size", self.network.size, SIZES)

    def to_json(self) -> str:
        """The configuration as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def load_train_config(path: str | Path) -> TrainConfig | MomentTrainConfig:
    """Reads and checks a training configuration (TOML).

    Args:
        path: file with the attributes of `TrainConfig` as keys, `[network]`, `[weights]`,
            `[optimizer]`, `[families]` and `[grid_levels]` as tables; or with a table `[moments]`
            and the attributes of `MomentTrainConfig`.

    Raises:
        InputError: if the file is missing, not TOML, has unknown keys (the closest known one is
            suggested), values of a wrong type, or numbers that make no sense.
    """
    kind = MomentTrainConfig if "moments" in read_toml(Path(path)) else TrainConfig
    return load(kind, Path(path))
