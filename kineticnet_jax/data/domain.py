"""The domain of a functional from the densities of a data set."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.functionals.domain import Domain, descriptors
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.neighbors import all_neighbors

SAMPLES = 6
"""Samples of a geometry that are looked at."""


def training_domain(
    dataset: Dataset, families: Sequence[str], filters: Filters, elements: tuple[int, ...]
) -> Domain | None:
    """What densities there are in the training split, and how far those of validation are away.

    Args:
        dataset: with training and validation geometries.
        families: that are trained.
        filters: of the functional.
        elements: nuclear charges.

    Returns:
        The domain, or None if an element does not occur in both splits.
    """
    known, unseen = (
        _descriptors(dataset.select(split), families, filters) for split in ("train", "validation")
    )
    if not set(elements) <= known.keys() & unseen.keys():
        return None
    return Domain.fit(filters, elements, known, unseen)


def _descriptors(
    dataset: Dataset, families: Sequence[str], filters: Filters
) -> dict[int, Float[np.ndarray, "_ numbers"]]:
    """Those of all atoms of an element, in some samples of every geometry."""
    found: dict[int, list[np.ndarray]] = {}
    for geometry, numbers in dataset.by_geometry():
        if dataset.record(geometry).family not in families:
            continue
        space, molecule = dataset.space(geometry), dataset.molecule(geometry)
        neighbors = all_neighbors(len(molecule.positions), len(space.grid.points))
        every = max(len(numbers) // SAMPLES, 1)
        for number in numbers[::every][:SAMPLES]:
            density, _ = dataset.density(geometry, number)
            with jax.enable_x64(True):
                rows = descriptors(filters, molecule, neighbors, space.grid, density)
            for z, row in zip(molecule.charges, np.asarray(rows), strict=True):
                found.setdefault(int(z), []).append(row)
    return {z: np.array(rows) for z, rows in found.items()}
