"""Curvatures in training: derivatives, what a search finds, and that training raises them."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tiny import NETWORK, random_functional

import kineticnet_jax as kn
from kineticnet_jax.data.spaces import expand_in_functions
from kineticnet_jax.errors import InputError
from kineticnet_jax.train.config import TrainConfig
from kineticnet_jax.train.curvature import (
    CURVATURES,
    MILLIHARTREE_PER_UNIT,
    CurvatureSettings,
    CutBank,
    curvature_rows,
    learned_curvature,
)
from kineticnet_jax.train.gauss_newton import GaussNewtonSettings
from kineticnet_jax.train.groups import GroupReader, over_geometries
from kineticnet_jax.train.loop import train
from kineticnet_jax.train.loss import prepare_geometry
from kineticnet_jax.train.metrics import METRICS
from kineticnet_jax.train.step import OptimizerSettings

SETTINGS = CurvatureSettings(
    weight=1.0, every=2, geometries=1, directions=2, floor=0.99, goal=1.5, rows=2
)
"""Everything is too low but for the change of N, whose curvature is 1 by definition."""


@pytest.fixture(scope="module")
def reader(data):
    return GroupReader(kn.Dataset(data).select("train", "H2"))


def test_learned_curvature_is_that_of_finite_differences(reader):
    functional = random_functional("pauli", "gradient", interactions=0)
    geometry, numbers = next(iter(reader.numbers.items()))
    group = reader.read([geometry], np.array([numbers[:1]]))

    def both(_, part):
        site, targets = prepare_geometry(functional, part, np.float64)
        x = targets.x[0]
        direction = jnp.cos(jnp.arange(len(x)) + 1.0)

        def energy(step):
            y = x + step * direction
            y *= jnp.sqrt(2 / jnp.vdot(y, y))
            values = expand_in_functions(site.space, y)
            density = kn.GridDensity(values[0] ** 2, 2 * (values[0] * values[1:]).T)
            return site.functional.remainder(site.molecule, site.grid, density)

        h = 1e-3
        difference = (energy(h) - 2 * energy(0.0) + energy(-h)) / h**2
        return None, (learned_curvature(site, functional.params, x, direction), difference)

    found, expected = over_geometries(both, None, group)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_search_and_rows_agree(reader, tmp_path):
    functional = random_functional("total", "density", interactions=0)

    def bank(step):
        return CutBank(SETTINGS, tmp_path, reader, functional, ("H2",), 0, step)

    first = bank(0)
    first.update(2, functional.params)
    assert len(first.found["H2"]) == 2
    (cuts,) = first.draw(3)
    rows = curvature_rows(functional, SETTINGS, np.float64, functional.params, cuts)
    curvatures = rows.values / MILLIHARTREE_PER_UNIT + SETTINGS.goal
    with (tmp_path / CURVATURES).open(newline="") as file:
        (row,) = csv.DictReader(file)
    # Lanczos' eigenvalue against that of the energy of the data's grid, with the same direction.
    assert min(curvatures) == pytest.approx(float(row["lowest"]), rel=2e-3)

    flat, unravel = ravel_pytree(functional.params)
    change = np.random.default_rng(0).normal(size=flat.shape)
    values = [
        curvature_rows(functional, SETTINGS, np.float64, unravel(flat + t * change), cuts).values
        for t in (1e-7, -1e-7)
    ]
    np.testing.assert_allclose(rows.jacobian @ change, (values[0] - values[1]) / 2e-7, rtol=1e-5)

    again = bank(3)
    for one, other in zip(*map(jax.tree.leaves, (again.draw(3), cuts)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_raises_curvatures(data, tmp_path):
    config = TrainConfig(
        "tiny",
        steps=24,
        network=dataclasses.replace(NETWORK, interactions=0),
        # Plain damped steps: with momentum, the curvatures rise and fall.
        optimizer=OptimizerSettings(
            warmup=2, final=1.0, gauss_newton=GaussNewtonSettings(damping=1e-3, momentum=0.0)
        ),
        # One search, so that the directions stay the same, and little else that counts.
        curvature=dataclasses.replace(SETTINGS, every=12, weight=1e4),
        precision="float64",
        families={"H2": 1},
        log_every=1,
        validate_every=24,
        checkpoint_every=24,
    )
    train(config, kn.Dataset(data), tmp_path / "run")
    with (tmp_path / "run" / METRICS).open(newline="") as file:
        values = [float(row["curvature"]) for row in csv.DictReader(file)]
    assert values[:12] == [0] * 12
    assert 0 < np.mean(values[-4:]) < 0.1 * np.mean(values[12:14])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "must not be negative"),
        ({"rows": 0}, "rows of the curvature must be at least 1"),
        ({"floor": 0.5}, "must not be above its goal"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CurvatureSettings(), **changes).check()


def test_adam_has_no_rows_for_curvatures():
    config = TrainConfig("x", 1, curvature=SETTINGS, optimizer=OptimizerSettings("adam"))
    with pytest.raises(InputError, match="gauss-newton steps only"):
        config.check()
