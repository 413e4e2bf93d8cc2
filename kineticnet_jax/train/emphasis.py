"""Samples with large errors, drawn more often in training."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np

from kineticnet_jax.files import complete_file
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.network import Params
from kineticnet_jax.train.config import TrainConfig
from kineticnet_jax.train.groups import GroupReader, SampleWeights
from kineticnet_jax.train.loss import validation_errors
from kineticnet_jax.train.processes import on_first, share, total

MOST = 20.0
"""Errors of a sample, relative to the mean, that are told apart; one bad sample is not all."""


def emphasized(errors: dict[int, np.ndarray], emphasis: float) -> SampleWeights:
    """Weights of the samples of a family by their errors.

    Args:
        errors: absolute errors of all samples of each geometry of the family.
        emphasis: of samples with large errors.

    Returns:
        1 + emphasis · error / mean error, where no error counts as more than MOST means.
    """
    everything = np.concatenate(list(errors.values()))
    mean = np.mean(everything[np.isfinite(everything)])
    return {
        geometry: 1 + emphasis * np.nan_to_num(np.minimum(values / mean, MOST), nan=MOST)
        for geometry, values in errors.items()
    }


class Emphasis:
    """Weights of the training samples by their errors, which are measured every so many steps.

    These errors are kept in the folder of the run, so that a run that goes on has them.

    Args:
        config: of the training.
        folder: of the run.
        training: its samples.
        template: the functional whose parameters are trained.
        families: those that are trained on.

    Attributes:
        weights: those of the last `update`; None as long as all samples are drawn alike.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        training: GroupReader,
        template: LearnedFunctional,
        families: Iterable[str],
    ):
        self.weights: SampleWeights | None = None
        self._config, self._folder, self._families = config, folder, tuple(families)
        self._training, self._template = training, template
        self._measured_at = -1

    def update(self, step: int, params: Params) -> None:
        """Weights at a step, by the errors at the last step these were measured.

        Args:
            step: number of steps made.
            params: the parameters, used if errors are measured at this step.
        """
        last = step // self._config.emphasis_every * self._config.emphasis_every
        if not self._config.emphasis or last == self._measured_at:
            return
        if last == 0 and not self._config.start:
            return
        place = self._folder / f"errors-{last:06d}.npy"
        if not on_first(place.is_file):
            measured = [
                values
                for family in self._families
                for values in self._errors(params, family).values()
            ]
            on_first(partial(_save, place, np.concatenate(measured)))
        rest = np.load(place)
        self.weights, self._measured_at = {}, last
        for family in self._families:
            errors = {}
            for geometry in self._training.families[family]:
                count = len(self._training.numbers[geometry])
                errors[geometry], rest = rest[:count], rest[count:]
            self.weights |= emphasized(errors, self._config.emphasis)

    def _errors(self, params: Params, family: str) -> dict[int, np.ndarray]:
        """Absolute errors of T_s in hartree at all training samples of the geometries of a family.

        They are read in groups of one size, so that only one program is compiled; each process
        measures its share of the geometries.
        """
        training, level = self._training, self._config.grid_levels.get(family)
        geometries = training.families[family]
        most = max(len(training.numbers[geometry]) for geometry in geometries)

        errors = np.zeros((len(geometries), most), self._config.precision)

        def measure(row: int) -> None:
            geometry = geometries[row]
            numbers = np.array(training.numbers[geometry])
            with jax.enable_x64(True):
                group = training.read([geometry], np.resize(numbers, (1, most)), None, level)
                found = validation_errors(
                    self._template, params, group, self._config.precision, potentials=False
                )
            errors[row] = np.abs(found.energy[0])

        # The first one compiles; one program is slow on several cores, several at once are not.
        own = range(len(geometries))[share(len(geometries))]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for rows in (own[:1], own[1:]):
                list(threads.map(measure, rows))
        return {
            geometry: values[: len(training.numbers[geometry])]
            for geometry, values in zip(geometries, total(errors), strict=True)
        }


def _save(place: Path, errors: np.ndarray) -> None:
    with complete_file(place) as temporary, temporary.open("wb") as file:
        np.save(file, errors)
