"""The training of a moment network; goes on where it was stopped."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.domain import training_domain
from kineticnet_jax.errors import IncompleteError, InputError, unknown_name
from kineticnet_jax.files import write_json
from kineticnet_jax.functionals.learned import LearnedFunctional, Provenance
from kineticnet_jax.functionals.storage import read_functional, save_functional
from kineticnet_jax.nn.moments import MomentNet
from kineticnet_jax.train.checkpoint import Checkpoints
from kineticnet_jax.train.folder import prepare_folder
from kineticnet_jax.train.loop import BEST, CHECKPOINTS, LAST, Progress
from kineticnet_jax.train.metrics import (
    BOTH,
    METRICS,
    MOMENT_METRIC_NAMES,
    VALIDATION,
    VALIDATION_NAMES,
    Table,
)
from kineticnet_jax.train.moment_config import MomentTrainConfig
from kineticnet_jax.train.moment_curvature import Cut
from kineticnet_jax.train.moment_loss import MomentLoss, Samples
from kineticnet_jax.train.moment_search import Searches
from kineticnet_jax.train.moments import (
    MomentLabels,
    Whitening,
    barrier_limits,
    moment_labels,
)
from kineticnet_jax.train.step import TrainState
from kineticnet_jax.train.visits import Bounds
from kineticnet_jax.types import Scalar

VALIDATED_AT_A_TIME = 32

FINAL = 1 / 300
"""The last learning rate in units of the largest."""


def train_moments(
    config: MomentTrainConfig,
    dataset: Dataset,
    folder: str | Path,
    callback: Callable[[Progress], None] | None = None,
    prepared: Callable[[str, int], None] | None = None,
) -> LearnedFunctional:
    """Trains a moment network on the training split of a data set, or goes on with a run.

    The folder holds the configuration, labels in terms of moments, metrics, checkpoints and the
    functional of the last validation ("best", as the least errors are at the end of a training
    with falling learning rate). Batches follow from the seed and the step. The test split is not
    read.

    Args:
        config: what is trained.
        dataset: with training and validation geometries.
        folder: of the run.
        callback: called after every validation.
        prepared: called with the name of a family and how many of its samples are moments.

    Returns:
        The functional of the last step.

    Raises:
        InputError: if data and configuration do not fit together, or the folder holds something
            else, another run, or a damaged checkpoint.
        IncompleteError: if the loss is not finite, or it is interrupted.
    """
    config.check()
    return _Run(config, dataset, Path(folder), prepared).go(callback)


class _Run:
    def __init__(
        self,
        config: MomentTrainConfig,
        dataset: Dataset,
        folder: Path,
        prepared: Callable[[str, int], None] | None = None,
    ):
        self.config, self.dataset, self.folder = config, dataset, folder
        families = {split: dataset.select(split).families for split in ("train", "validation")}
        for split, names in families.items():
            if not names:
                raise InputError(f"{dataset.path}: has no {split} samples, training needs them")
            for name in config.families or families["train"]:
                if name not in names:
                    raise unknown_name(f"family with {split} samples", name, names)
        self.counts = config.families or dict.fromkeys(families["train"], config.samples)
        charges = [dataset.family(name).charges for name in self.counts]
        elements = tuple(sorted({int(z) for row in charges for z in row}))
        self.network = config.moments.config(elements, config.target)
        prepare_folder(folder, config, dataset)
        self.labels = {name: self._labels(name, prepared) for name in self.counts}
        self.whitening = Whitening.fit(self.network, self.labels)
        compositions = np.array(
            [np.bincount(known.element, minlength=len(elements)) for known in self.labels.values()]
        )
        energies = [np.mean(known.energy[~known.validation]) for known in self.labels.values()]
        self.shift = np.linalg.lstsq(compositions.astype(float), energies, rcond=None)[0]
        for known in self.labels.values():
            known.moments = self.whitening.of_moments(known.element, known.moments)
            known.changes = self.whitening.of_changes(known.element, known.changes)
            known.energy = known.energy - np.sum(self.shift[known.element])
        # Where it is computed: a step chooses from them there.
        self.samples: dict[str, Samples] = jax.tree.map(
            jnp.asarray,
            {
                name: (known.moments, known.changes, known.energy.astype(np.float32), known.slope)
                for name, known in self.labels.items()
            },
        )
        for known in self.labels.values():
            # By far the largest part; nothing else needs it.
            known.changes = []
        element = {name: known.element for name, known in self.labels.items()}
        self.searches = Searches(
            config, self.network, dataset, folder, self.whitening, element, self.shift
        )
        self.loss = MomentLoss(config, self.whitening, element, self.searches.curvatures)
        self._evaluate = jax.jit(self.loss.errors)

    def _labels(self, family: str, prepared: Callable[[str, int], None] | None) -> MomentLabels:
        """Those of a family, from the folder if they are there."""
        config, place = self.config, self.folder / f"labels-{family}.npz"
        if not place.is_file():
            callback = None if prepared is None else partial(prepared, family)
            moment_labels(
                self.network,
                self.dataset,
                family,
                config.directions,
                config.kappa,
                config.seed,
                callback,
            ).write(place)
        return MomentLabels.read(place, self.network)

    def go(self, callback: Callable[[Progress], None] | None) -> LearnedFunctional:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0,
            self.config.learning_rate,
            min(self.config.warmup, self.config.steps // 2),
            self.config.steps,
            self.config.learning_rate * FINAL,
        )
        optimizer = optax.adam(schedule, b2=0.99)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), self._initial())
        memory = {"optax": optimizer.init(params)}
        state = TrainState(params, params, memory, jnp.zeros((), jnp.int32))
        checkpoints = Checkpoints(self.folder / CHECKPOINTS)
        try:
            state = checkpoints.latest(state) or state
            for due in range(int(state.step)):
                self._look(due, state)
            self._steps(state, optimizer, checkpoints, callback)
        except KeyboardInterrupt:
            raise IncompleteError(
                f"interrupted; give the same command again to go on from the last checkpoint in "
                f"{checkpoints.folder}"
            ) from None
        finally:
            checkpoints.close()
        return read_functional(self.folder / BEST)

    def _initial(self) -> dict[str, Any]:
        """Those that are trained; the others follow from the data."""
        params = MomentNet(self.network).init(self.config.seed)
        known = ("mean", "usual", "limit")
        return {name: value for name, value in params.items() if name not in known}

    def _steps(
        self,
        state: TrainState,
        optimizer: optax.GradientTransformation,
        checkpoints: Checkpoints,
        callback: Callable[[Progress], None] | None,
    ) -> None:
        config, searches = self.config, self.searches
        metrics = Table(self.folder / METRICS, MOMENT_METRIC_NAMES, int(state.step))
        validation = Table(self.folder / VALIDATION, VALIDATION_NAMES, int(state.step))
        before = metrics.rows[-1]["seconds"] if metrics.rows else 0.0
        start = last = time.perf_counter()
        recent: list[dict[str, Array]] = []

        @jax.jit
        def update(
            state: TrainState,
            batch: dict[str, Samples],
            cuts: dict[str, Cut],
            bounds: dict[str, Bounds],
        ) -> tuple[TrainState, dict[str, Scalar]]:
            slope, terms = jax.grad(self.loss, has_aux=True)(state.params, batch, cuts, bounds)
            change, memory = optimizer.update(slope, state.optimizer["optax"], state.params)
            params = optax.apply_updates(state.params, change)
            averaged = jax.tree.map(
                lambda old, new: old + (1 - config.average) * (new - old), state.averaged, params
            )
            terms["step_norm"] = jnp.linalg.norm(ravel_pytree(change)[0])
            return TrainState(params, averaged, {"optax": memory}, state.step + 1), terms

        for done in range(int(state.step) + 1, config.steps + 1):
            self._look(done - 1, state)
            batch = chosen(self.samples, self._drawn(done - 1))
            state, terms = update(state, batch, searches.cuts(done - 1), searches.bounds(done - 1))
            recent.append(terms)
            if done % config.validate_every and done != config.steps:
                continue
            row = {name: float(np.mean([terms[name] for terms in recent])) for name in recent[0]}
            if not np.isfinite(row["loss"]):
                raise IncompleteError(
                    f"step {done}: the loss is not a number; the checkpoint before it is in "
                    f"{checkpoints.folder}: try a smaller learning rate"
                )
            now = time.perf_counter()
            row |= {
                "tau": 0.0,
                "samples_per_second": len(recent) * sum(self.counts.values()) / (now - last),
                "seconds": before + now - start,
            }
            metrics.add({"step": done} | row)
            rows = [{"step": done} | self._validate(name, state.averaged) for name in self.counts]
            for of_family in rows:
                validation.add(of_family)
            write_json(
                self.folder / BOTH, {"training": metrics.rows, "validation": validation.rows}
            )
            functional = self._functional(state, rows)
            save_functional(functional, self.folder / LAST)
            if done == config.steps:
                filters, elements = self.network.filters, self.network.elements
                domain = training_domain(self.dataset, tuple(self.counts), filters, elements)
                save_functional(replace(functional, domain=domain), self.folder / BEST)
            # Last: what a run that is killed before has not written, it writes when it goes on.
            checkpoints.save(state)
            if callback is not None:
                callback(Progress(done, config.steps, row, _score(rows)))
            recent, last = [], time.perf_counter()

    def _drawn(self, step: int) -> dict[str, Array | np.ndarray]:
        """Numbers of the samples of each family for a step."""
        random = np.random.default_rng([self.config.seed, step])
        numbers: dict[str, Array | np.ndarray] = {}
        for name, count in self.counts.items():
            known = self.labels[name]
            plain = round(count * self.config.unperturbed)
            drawn = [
                random.choice(among, number, replace=len(among) < number)
                for among, number in (
                    (np.flatnonzero(~known.validation), count - plain),
                    (np.flatnonzero(~known.validation & known.unperturbed), plain),
                )
            ]
            numbers[name] = np.concatenate(drawn)
        return numbers

    def _look(self, step: int, state: TrainState) -> None:
        """Searches that are due."""
        self.searches.look(step, state.averaged, partial(self._functional, state, []))

    def _validate(self, family: str, params: dict) -> dict[str, Any]:
        """Errors on the validation split in millihartree."""
        numbers = np.flatnonzero(self.labels[family].validation)
        found = []
        for start in range(0, len(numbers), VALIDATED_AT_A_TIME):
            own = numbers[start : start + VALIDATED_AT_A_TIME]
            padded = np.resize(own, VALIDATED_AT_A_TIME)
            samples = chosen({family: self.samples[family]}, {family: padded})
            energy, potential = self._evaluate(params, samples)[family]
            squares = np.sum(np.asarray(potential) ** 2, axis=1)
            found.append(np.stack([np.abs(energy), squares])[:, : len(own)])
        energy, potential = np.concatenate(found, axis=1)
        return {
            "family": family,
            "samples": energy.size,
            "energy": float(energy.mean()),
            "largest": float(energy.max()),
            "tau": 0.0,
            "potential": float(potential.mean()),
            "median": float(np.median(potential)),
        }

    def _functional(self, state: TrainState, rows: list[dict[str, Any]]) -> LearnedFunctional:
        params = self.whitening.folded(state.averaged) | barrier_limits(
            self.network, self.whitening, self.labels, state.averaged
        )
        params["bias"] = params["bias"] + self.shift
        details = self.dataset.conditions(tuple(self.counts)) | {
            "training": self.config.to_json(),
            "version": metadata.version("kineticnet-jax"),
            "steps": str(int(state.step)),
        }
        for row in rows:
            details[f"validation error, {row['family']}"] = (
                f"T_s MAE {row['energy']:.3g} mHa, potential {row['potential']:.3g} mHa"
            )
        provenance = Provenance(self.config.name, tuple(details.items()))
        return LearnedFunctional(self.network, params, provenance=provenance)


@jax.jit
def chosen(
    samples: dict[str, Samples], numbers: dict[str, Array | np.ndarray]
) -> dict[str, Samples]:
    """Some samples of each family.

    A program of its own: as a part of a step, every use of a sample would look it up again.
    """

    def of_family(leaf: Array, own: Array | np.ndarray) -> Array:
        # Without a check of the numbers it takes a quarter of the time.
        return leaf.at[own].get(mode="promise_in_bounds")

    return {
        name: jax.tree.map(partial(of_family, own=own), samples[name])
        for name, own in numbers.items()
    }


def _score(rows: list[dict[str, Any]]) -> float:
    """Mean over families of the mean error of the energy and the median one of the potential."""
    return float(np.mean([row["energy"] + row["median"] for row in rows]))
