"""What is looked for while a moment network is trained: low curvatures and visited densities."""

import logging
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.moments import MomentNetConfig
from kineticnet_jax.train.loss import MILLIHARTREE
from kineticnet_jax.train.moment_config import (
    MomentCurvatureSettings,
    MomentTrainConfig,
    VisitSettings,
)
from kineticnet_jax.train.moment_curvature import Curvatures, Cut, LowCurvatures, Site, find_sites
from kineticnet_jax.train.moments import Whitening
from kineticnet_jax.train.visits import Bounds, Place, Visits, joined, visits

logger = logging.getLogger(__name__)


class Searches:
    """Searches of a run, and what they have found; from the folder of the run if it is there.

    Args:
        config: of the training.
        network: its moments.
        dataset: with training geometries.
        folder: of the run.
        whitening: of the moments.
        element: index of the element of every atom of each family.
        shift: usual energy of each element in hartree, apart from which energies are learned.
    """

    def __init__(
        self,
        config: MomentTrainConfig,
        network: MomentNetConfig,
        dataset: Dataset,
        folder: Path,
        whitening: Whitening,
        element: dict[str, np.ndarray],
        shift: np.ndarray,
    ):
        self.config, self.network, self.dataset, self.folder = config, network, dataset, folder
        self.whitening, self.element, self.shift = whitening, element, shift
        self.curvatures = Curvatures(network, whitening)
        self._sites: list[Site] = []
        self._cuts: dict[str, list[Cut]] = {name: [] for name in element}
        self._bounds: dict[str, Bounds] = {}

    def look(self, step: int, params: dict, functional: Callable[[], LearnedFunctional]) -> None:
        """Looks for both, if it is time for them.

        Args:
            step: number of steps done.
            params: that are trained, averaged.
            functional: makes the functional of these parameters.

        Raises:
            InputError: if the folder holds searches of another version, or damaged ones.
        """
        if _is_due(step, self.config.curvature):
            self._search(step, params)
        if _is_due(step, self.config.visits):
            self._visit(step, functional)

    def cuts(self, step: int) -> dict[str, Cut]:
        """Directions of low curvature for a step."""
        random = np.random.default_rng([self.config.seed, step, 1])
        rows = self.config.curvature.rows
        drawn = {}
        for name, cuts in self._cuts.items():
            if cuts:
                chosen = random.choice(len(cuts), rows, replace=len(cuts) < rows)
                drawn[name] = jax.tree.map(
                    lambda *leaves: np.stack(leaves), *(cuts[i] for i in chosen)
                )
        return drawn

    def bounds(self, step: int) -> dict[str, Bounds]:
        """Visited densities for a step."""
        random = np.random.default_rng([self.config.seed, step, 2])
        rows = self.config.visits.rows
        drawn = {}
        for name, bounds in self._bounds.items():
            count = len(bounds.energy)
            drawn[name] = bounds.rows(random.choice(count, rows, replace=count < rows))
        return drawn

    def _visit(self, step: int, functional: Callable[[], LearnedFunctional]) -> None:
        """Densities that optimizations visit, from the folder if they are there."""
        settings = self.config.visits
        for name in self.element:
            path = self.folder / f"visits-{step:06d}-{name}.npz"
            if not path.is_file():
                time = (step - settings.first) // settings.every
                self._visits(functional(), name, time).write(path)
            found = Visits.read(path, self.network).bounds
            shift = np.sum(self.shift[self.element[name]])
            found = found.relative_to(shift).in_float32()
            known = self._bounds.get(name)
            self._bounds[name] = found if known is None else joined([known, found])

    def _visits(self, functional: LearnedFunctional, family: str, time: int) -> Visits:
        """Those of a family, of other geometries each time."""
        settings = self.config.visits
        geometries = self.dataset.select("train", family).geometries
        count = settings.geometries if len(self.element[family]) > 1 else 1
        order = np.random.default_rng(self.config.seed).permutation(len(geometries))
        found = []
        with jax.enable_x64(True):
            for number in np.arange(time * count, (time + 1) * count) % len(order):
                place = Place.of(self.network, self.dataset, geometries[order[number]])
                for guess in settings.guesses:
                    solutions = list(place.visited(functional, guess, settings.stops))
                    logger.info(
                        "%s, geometry %d from %s: %.2f mHa, %s",
                        family,
                        place.geometry,
                        guess,
                        (solutions[-1].energy - place.energy) / MILLIHARTREE,
                        solutions[-1].reason,
                    )
                    densities = [solution.density for solution in solutions]
                    found.append(
                        visits(self.network, self.whitening, place, densities, settings.curvature)
                    )
        return joined(found)

    def _search(self, step: int, params: dict) -> None:
        """Directions of low curvature, from the folder if they are there."""
        place = self.folder / f"curvatures-{step:06d}.npz"
        settings, sites = self.config.curvature, self.sites()
        if not place.is_file():
            LowCurvatures.search(
                self.curvatures, params, sites, settings.floor, settings.directions
            ).write(place)
        found = LowCurvatures.read(place)
        if len(found.lowest) != len(sites):
            raise InputError(
                f"{place}: of another version, {len(found.lowest)} densities were searched instead "
                f"of {len(sites)}; delete it and give the same command again"
            )
        for family, cuts in found.cuts(self.curvatures, sites, settings.directions):
            self._cuts[family] += cuts

    def sites(self) -> list[Site]:
        """Densities that are searched, spread over the training geometries of each family."""
        if not self._sites:
            settings = self.config.curvature
            for name, element in self.element.items():
                all_of_it = self.dataset.select("train", name).geometries
                # Those of an atom are alike.
                count = settings.geometries if len(element) > 1 else 1
                chosen = np.linspace(0, len(all_of_it) - 1, count).astype(int)
                for number in np.unique(chosen):
                    with jax.enable_x64(True):
                        place = Place.of(self.network, self.dataset, all_of_it[number])
                    self._sites += find_sites(
                        self.network, place, self.whitening, settings.mixtures
                    )
        return self._sites


def _is_due(step: int, settings: MomentCurvatureSettings | VisitSettings) -> bool:
    """Whether it is time for a search, before the next step."""
    waited = step - settings.first
    return settings.weight > 0 and waited >= 0 and waited % settings.every == 0
