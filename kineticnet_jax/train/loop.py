"""The training run: steps, validation, checkpoints, metrics; goes on where it was stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.domain import training_domain
from kineticnet_jax.errors import IncompleteError, InputError, unknown_name
from kineticnet_jax.files import write_arrays, write_json
from kineticnet_jax.functionals.domain import Domain
from kineticnet_jax.functionals.learned import LearnedFunctional, Provenance
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.functionals.storage import read_functional, save_functional
from kineticnet_jax.nn.network import KineticNet
from kineticnet_jax.train.checkpoint import Checkpoints
from kineticnet_jax.train.config import TrainConfig
from kineticnet_jax.train.curvature import CutBank
from kineticnet_jax.train.emphasis import Emphasis
from kineticnet_jax.train.folder import prepare_folder
from kineticnet_jax.train.groups import Group, GroupReader
from kineticnet_jax.train.loss import validation_errors
from kineticnet_jax.train.metrics import (
    BOTH,
    METRIC_NAMES,
    METRICS,
    VALIDATION,
    VALIDATION_NAMES,
    Table,
)
from kineticnet_jax.train.processes import (
    device_mesh,
    is_first,
    local,
    on_first,
    replicate,
    share,
    spread,
    total,
)
from kineticnet_jax.train.step import Batch, TrainState, initial_state, make_optimizer, make_step

CHECKPOINTS, BEST, LAST = "checkpoints", "best", "last"
FAILED = "failed_batch.npz"


@dataclass(frozen=True)
class Progress:
    """What a callback of `train` is told.

    Attributes:
        step: steps done.
        steps: steps there will be.
        metrics: means since the last report, by the names of METRIC_NAMES; losses in millihartree.
        best: the best validation so far: mean over families of the error of the energy and the
            median one of the potential in millihartree.
    """

    step: int
    steps: int
    metrics: dict[str, float]
    best: float


def train(
    config: TrainConfig,
    dataset: Dataset,
    folder: str | Path,
    callback: Callable[[Progress], None] | None = None,
    devices: int = 1,
) -> LearnedFunctional:
    """Trains a network on the training split of a data set, or goes on with a run.

    The folder holds the configuration, the metrics, checkpoints, and the functional with the least
    error on the validation split ("best") and that of the last step ("last"). Batches and random
    numbers follow from the seed and the step, so that a run that was killed goes on as if nothing
    had happened. The test split is not read. Several processes (`processes.join`) call this with
    the same arguments, and with a data set and a folder on a disk that all of them see.

    Args:
        config: what is trained.
        dataset: with training and validation geometries.
        folder: of the run.
        callback: called every `log_every` steps, in the first process.
        devices: of each process, over which the geometries of a step are spread. Their number in
            all processes must divide those of the geometries.

    Returns:
        The functional with the least error on the validation split.

    Raises:
        InputError: if data and configuration do not fit together, or the folder holds something
            else, another run, or a damaged checkpoint.
        IncompleteError: if the loss is not finite; the batch is saved. If it is interrupted; the
            functional of the last step is saved.
    """
    config.check()
    folder = Path(folder)
    run = _Run(config, dataset, folder, devices)
    return run.go(callback)


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        folder: Path,
        devices: int,
    ):
        self.config, self.dataset, self.folder = config, dataset, folder
        self.mesh = device_mesh(devices)
        self.train_data = self._select("train")
        self.validation_data = self._select("validation")
        self.training = GroupReader(self.train_data, fresh=config.source == "fresh")
        self.validation = GroupReader(self.validation_data)
        for name in (*config.families, *config.grid_levels):
            if name not in self.training.families:
                raise unknown_name("family", name, self.training.families)
        self.counts = config.families or dict.fromkeys(self.training.families, config.geometries)
        self._check_counts()
        charges = [dataset.family(name).charges for name in self.training.families]
        elements = tuple(sorted({int(z) for row in charges for z in row}))
        self.network = config.network.config(elements, config.target)
        start = self._start()
        self.template = LearnedFunctional(self.network, provenance=self._provenance(start))
        self.params = (
            start.params
            if start is not None
            else KineticNet(self.network).init(jax.random.key(config.seed))
        )
        self.emphasis = Emphasis(config, self.folder, self.training, self.template, self.counts)
        self.cuts: CutBank | None = None
        self._state: TrainState | None = None
        on_first(partial(prepare_folder, self.folder, config, dataset))

    def _select(self, split: str) -> Dataset:
        part = self.dataset.select(split=split, kind=self.config.kinds or None)
        if len(part) == 0:
            raise InputError(f"{self.dataset.path}: has no {split} samples, training needs them")
        return part

    def _check_counts(self) -> None:
        spread = {f"geometries of {name}": count for name, count in self.counts.items()}
        if self.config.curvature.weight:
            spread["rows of the curvature"] = self.config.curvature.rows
        for what, count in spread.items():
            if self.mesh is not None and count % self.mesh.size:
                raise InputError(
                    f"{what} in a step must be a multiple of the {self.mesh.size} devices, "
                    f"but are {count}"
                )

    def _provenance(self, start: LearnedFunctional | None) -> Provenance:
        """Of the training, and of all before it with the latest first.

        Where a functional lies on this machine is nobody else's business: its name is kept.
        """
        config = self.config if start is None else replace(self.config, start=start.name)
        details = self.dataset.conditions(tuple(self.counts)) | {
            "training": config.to_json(),
            "version": metadata.version("kineticnet-jax"),
        }
        if start is not None:
            before = dict(start.provenance.details)
            for key, separator in (("training", "\n"), ("steps", ", ")):
                chain = (before.get(name, "") for name in (key, f"{key} before"))
                details[f"{key} before"] = separator.join(part for part in chain if part)
        return Provenance(config.name, tuple(details.items()))

    def _start(self) -> LearnedFunctional | None:
        """The functional whose parameters are the first ones, if there is one.

        An element that it does not know begins as the nearest one that it does.
        """
        start = self.config.start
        if not start:
            return None
        functional = load_functional(start)
        wanted = self.network.elements
        if (
            not isinstance(functional, LearnedFunctional)
            or functional.network is None
            or replace(functional.network, elements=wanted) != self.network
        ):
            raise InputError(
                f"start: '{start}' has not the network of this training; give the same size, "
                "settings and target"
            )
        distances = np.abs(np.array(wanted)[:, None] - np.array(functional.elements))
        rows = np.asarray(functional.params["elements"])[np.argmin(distances, axis=1)]
        return replace(
            functional, network=self.network, params=functional.params | {"elements": rows}
        )

    def batch(self, step: int) -> Batch:
        """The samples of a step, the same whenever it is asked for.

        With several processes each reads those of its own devices.
        """
        random = np.random.default_rng([self.config.seed, step])
        groups = tuple(self._group(random, *family) for family in self.counts.items())
        batch = groups + (() if self.cuts is None else self.cuts.draw(step))
        return batch if self.mesh is None else tuple(spread(part, self.mesh) for part in batch)

    def _group(self, random: np.random.Generator, family: str, count: int) -> Group:
        chosen = self.training.choose_geometries(random, family, count, self.emphasis.weights)
        count_of_each = self.config.samples
        if self.config.source == "fresh":
            samples = random.integers(2**32, size=(count, count_of_each))
        else:
            samples = np.array(
                [
                    self.training.choose_samples(
                        random, int(g), count_of_each, self.emphasis.weights
                    )
                    for g in chosen
                ]
            )
        largest = self.config.grid_stretch
        stretch = None if largest == 1 else largest ** random.uniform(-1, 1, count)
        level = self.config.grid_levels.get(family)
        own = share(count)
        return self.training.read(
            [int(g) for g in chosen[own]],
            samples[own],
            None if stretch is None else stretch[own],
            level,
        )

    def go(self, callback: Callable[[Progress], None] | None) -> LearnedFunctional:
        config = self.config
        with jax.enable_x64(True):
            params = jax.tree.map(lambda x: jnp.asarray(x, config.precision), self.params)
            optimizer = make_optimizer(config.optimizer, config.steps)
            state = initial_state(config.optimizer, optimizer, params)
            if self.mesh is not None:
                state = replicate(state, self.mesh)
            checkpoints = Checkpoints(self.folder / CHECKPOINTS)
            state = checkpoints.latest(state) or state
            step = make_step(
                self.template,
                config.optimizer,
                optimizer,
                config.weights,
                config.seed,
                self.mesh,
                config.precision,
                config.at_a_time,
                config.curvature,
            )
            if config.curvature.weight > 0:
                self.cuts = CutBank(
                    config.curvature,
                    self.folder,
                    self.training,
                    self.template,
                    tuple(self.counts),
                    config.seed,
                    int(state.step),
                )
            try:
                state = self._steps(state, step, checkpoints, callback)
            except KeyboardInterrupt:
                raise IncompleteError(self._keep_interrupted()) from None
            finally:
                checkpoints.close()
        return read_functional(self.folder / BEST)

    def _steps(
        self,
        state: TrainState,
        step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
        checkpoints: Checkpoints,
        callback: Callable[[Progress], None] | None,
    ) -> TrainState:
        config = self.config
        metrics = Table(self.folder / METRICS, METRIC_NAMES, int(state.step))
        validation = Table(self.folder / VALIDATION, VALIDATION_NAMES, int(state.step))
        before = metrics.rows[-1]["seconds"] if metrics.rows else 0.0
        best = min(_scores(validation.rows).values(), default=float("inf"))
        recent: list[dict[str, jax.Array]] = []
        start = last = time.perf_counter()
        for done in range(int(state.step) + 1, config.steps + 1):
            self.emphasis.update(done - 1, local(state.averaged))
            if self.cuts is not None:
                self.cuts.update(done - 1, local(state.averaged))
            # Read while the step before is computed.
            batch = self.batch(done - 1)
            state, values = step(jax.block_until_ready(state), batch)
            self._state = state
            recent.append(values)
            if done % config.log_every == 0 or done == config.steps:
                self._check_finite(done - len(recent), recent, checkpoints)
                now = time.perf_counter()
                samples = len(recent) * sum(self.counts.values()) * config.samples
                row = {key: float(np.mean([m[key] for m in recent])) for key in METRIC_NAMES[1:7]}
                row["samples_per_second"] = samples / (now - last)
                row["seconds"] = before + now - start
                metrics.add({"step": done} | row)
                recent, last = [], now
                if callback is not None and is_first():
                    callback(Progress(done, config.steps, row, best))
            if done % config.validate_every == 0 or done == config.steps:
                rows = self._validate(state)
                for row in rows:
                    validation.add(row)
                tables = {"training": metrics.rows, "validation": validation.rows}
                score = _scores(rows)[done]
                on_first(partial(self._write, state, rows, tables, score < best))
                best = min(best, score)
                last = time.perf_counter()
            if done % config.checkpoint_every == 0 or done == config.steps:
                checkpoints.save(state)
        return state

    def _write(
        self,
        state: TrainState,
        rows: list[dict[str, Any]],
        tables: dict[str, list[dict[str, Any]]],
        better: bool,
    ) -> None:
        """Writes all metrics so far, and the functional of a state."""
        write_json(self.folder / BOTH, tables)
        functional = self._functional(state, rows, self._domain)
        if better:
            save_functional(functional, self.folder / BEST)
        save_functional(functional, self.folder / LAST)

    def _check_finite(
        self, first: int, recent: list[dict[str, jax.Array]], checkpoints: Checkpoints
    ) -> None:
        """Stops at a loss that is not finite, with the batch saved."""
        for i, values in enumerate(recent):
            if values["finite"]:
                continue
            leaves, _ = jax.tree_util.tree_flatten_with_path(self.batch(first + i))
            named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
            batch = multihost_utils.process_allgather(named, tiled=True)
            place = self.folder / FAILED
            on_first(partial(write_arrays, place, batch))
            raise IncompleteError(
                f"step {first + i + 1}: the loss or its gradient is not a number; the batch is in "
                f"{place}, the checkpoints before it in {checkpoints.folder}: look at the batch, "
                "and try a smaller learning rate"
            )

    def _validate(self, state: TrainState) -> list[dict[str, Any]]:
        """Errors on the validation split in millihartree, a row for each family."""
        rows = []
        params, samples = local(state.averaged), self.config.validation_samples
        for family in self.counts:
            geometries, level = (
                self.validation.families[family],
                self.config.grid_levels.get(family),
            )
            found = np.zeros((3, len(geometries), samples), self.config.precision)
            for i in range(len(geometries))[share(len(geometries))]:
                numbers = np.resize(self.validation.numbers[geometries[i]], samples)
                group = self.validation.read([geometries[i]], numbers[None], None, level)
                errors = validation_errors(self.template, params, group, self.config.precision)
                found[:, i] = errors.energy[0], errors.tau[0], errors.potential[0]
            energy, tau, potential = 1e3 * np.abs(total(found))
            rows.append(
                {
                    "step": int(state.step),
                    "family": family,
                    "samples": energy.size,
                    "energy": float(energy.mean()),
                    "largest": float(energy.max()),
                    "tau": float(tau.mean()),
                    "potential": float(potential.mean()),
                    "median": float(np.median(potential)),
                }
            )
        return rows

    def _keep_interrupted(self) -> str:
        """Saves the functional of a run that is interrupted; returns what to say about it."""
        again = "give the same command again to go on"
        if self._state is None:
            return f"interrupted before the first step; {again}"
        if is_first():
            save_functional(self._functional(self._state, [], None), self.folder / LAST)
        return (
            f"interrupted; the functional of step {int(self._state.step)} is in "
            f"{self.folder / LAST}: {again} from the last checkpoint"
        )

    def _functional(
        self, state: TrainState, rows: list[dict[str, Any]], domain: Domain | None
    ) -> LearnedFunctional:
        """The functional of a state, with its averaged parameters."""
        params = jax.tree.map(lambda x: np.asarray(x, dtype=np.float32), state.averaged)
        details = dict(self.template.provenance.details)
        details["steps"] = str(int(state.step))
        for row in rows:
            details[f"validation error, {row['family']}"] = (
                f"T_s MAE {row['energy']:.3g} mHa, potential {row['potential']:.3g} mHa"
            )
        provenance = Provenance(self.config.name, tuple(details.items()))
        return replace(self.template, params=params, provenance=provenance, domain=domain)

    @cached_property
    def _domain(self) -> Domain | None:
        filters, elements = self.network.filters, self.network.elements
        return training_domain(self.dataset, tuple(self.counts), filters, elements)


def _scores(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Mean over families of the mean error of the energy and the median one of the potential.

    Most of a mean of the latter are a few densities far from all others.
    """
    steps = {row["step"] for row in rows}
    return {
        step: float(np.mean([row["energy"] + row["median"] for row in rows if row["step"] == step]))
        for step in steps
    }
