"""Least squares steps: residuals against the errors, derivatives, and the step itself."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tiny import random_functional

import kineticnet_jax as kn
from kineticnet_jax.data.spaces import (
    expand_in_functions,
    overlaps_with_functions,
    preconditioned_changes,
)
from kineticnet_jax.errors import InputError
from kineticnet_jax.train.curvature import CurvatureRows
from kineticnet_jax.train.gauss_newton import (
    GaussNewtonSettings,
    Residuals,
    collective_changes,
    least_squares_step,
    residuals,
)
from kineticnet_jax.train.groups import GroupReader, over_geometries
from kineticnet_jax.train.loss import LossWeights, prepare_geometry, sample_errors

ALL = LossWeights(1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def group(data):
    return group_of(data, "He")


def group_of(data, family):
    reader = GroupReader(kn.Dataset(data).select("train", family))
    geometry, numbers = next(iter(reader.numbers.items()))
    return reader.read([geometry], np.array([numbers[:2]]))


def at_first(group, functional, function):
    """A function of site and targets, one sample: the last (perturbed) one of the geometry."""

    def geometry(_, part):
        site, targets = prepare_geometry(functional, part, np.float64)
        return None, function(site, jax.tree.map(lambda x: x[-1:], targets))

    return jax.tree.map(lambda x: x[0], over_geometries(geometry, None, group)[1])


@pytest.mark.parametrize(("target", "inputs"), [("total", "density"), ("pauli", "gradient")])
def test_squares_are_the_errors(group, target, inputs):
    functional = random_functional(target, inputs, interactions=0)
    params = functional.params

    def both(site, targets):
        count = len(site.kinetic_eigenvalues)
        settings = GaussNewtonSettings(count)
        rows = residuals(site, params, targets, jax.random.key(0), settings, ALL)
        return rows, sample_errors(site, params, targets)

    rows, errors = at_first(group, functional, both)
    np.testing.assert_allclose(rows.energy, 1e3 * errors.energy, rtol=1e-12)
    np.testing.assert_allclose(np.sum(rows.potential**2, axis=1), 1e3 * errors.potential, rtol=1e-9)


@pytest.mark.parametrize("kappa", [0.1, 10.0])
def test_squares_with_another_kappa(group, kappa):
    functional = random_functional("total", "density", interactions=0)
    params = functional.params

    def rows(site, targets):
        count = len(site.kinetic_eigenvalues)

        def potential(kappa):
            settings = GaussNewtonSettings(count, kappa=kappa)
            found = residuals(site, params, targets, jax.random.key(0), settings, ALL)
            return found.potential[0]

        # The errors along directions of one κ, as those along 2ψ u_k without a scale.
        key, _ = jax.random.split(jax.random.key(0))
        drawn = jax.random.normal(key, (1, count, count), float)
        directions = jnp.linalg.qr(drawn)[0][0].T
        eigenvalues = site.space.density.kinetic_eigenvalues
        x = targets.x[0]
        return potential(kappa), potential(1.0), directions, eigenvalues, x

    found, usual, directions, eigenvalues, x = at_first(group, functional, rows)
    # Both are linear in the directions: of all of them, residuals of the functions follow.
    unscaled = np.linalg.solve(directions, usual) * 2 * np.sqrt(eigenvalues + 1)
    expected = directions @ (unscaled / (2 * np.sqrt(eigenvalues + kappa)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(found).max())
    assert abs(np.vdot(unscaled, x)) < 1e-6 * np.abs(unscaled).max() * np.linalg.norm(x)


@pytest.mark.parametrize("collective", [0.0, 0.3])
def test_random_projections_are_right_on_average(group, collective):
    functional = random_functional("total", "density", interactions=0)
    params = functional.params

    def both(site, targets):
        keys = jax.random.split(jax.random.key(0), 400)

        def squares(key):
            settings = GaussNewtonSettings(1, collective)
            rows = residuals(site, params, targets, key, settings, ALL)
            return jnp.sum(rows.potential**2), rows.tau[0] ** 2

        bound = dataclasses.replace(site.functional, params=params)
        density, tau = jax.tree.map(lambda x: x[0], (targets.density, targets.tau))
        _, found = bound.remainder_and_density(site.molecule, site.grid, density)
        unit = 3 / 10 * (3 * np.pi**2) ** (2 / 3) * density.n ** (5 / 3) + 0.5 * density.n + 1e-10
        weighted = 1e3 * jnp.sum(jnp.abs(site.grid.weights) * (found - tau) ** 2 / unit)
        return jax.lax.map(squares, keys), sample_errors(site, params, targets), weighted

    (potential, tau), errors, weighted = at_first(group, functional, both)
    for found, expected in ((potential, 1e3 * errors.potential), (tau, weighted)):
        uncertainty = np.std(found) / np.sqrt(len(found))
        assert np.mean(found) == pytest.approx(float(expected.item()), abs=4 * float(uncertainty))
        assert uncertainty < 0.2 * expected


def test_collective_changes_move_electrons_and_keep_their_number(data):
    functional = random_functional("total", "density", interactions=0)

    def changes(site, targets):
        block = collective_changes(site, targets)[0]
        moved = preconditioned_changes(site.space, targets.x[0], block.T)
        values = expand_in_functions(site.space, moved)[:, 0]
        change = 2 * values * targets.psi[0] * site.space.grid.weights
        axis = site.molecule.positions[1] - site.molecule.positions[0]
        along = site.space.grid.points @ axis / jnp.linalg.norm(axis)
        return block, jnp.sum(change, axis=1), change @ along

    block, electrons, dipoles = at_first(group_of(data, "H2"), functional, changes)
    found = np.linalg.norm(block, axis=0) > 0.5
    # Of four functions the direction of ψ is left out.
    assert np.sum(found) == 3
    np.testing.assert_allclose((block.T @ block)[found][:, found], np.eye(3), atol=1e-10)
    np.testing.assert_allclose(electrons, 0, atol=1e-3)
    # From one proton to the other.
    assert np.linalg.norm(dipoles) > 0.5


def test_overlaps_are_the_transpose_of_an_expansion(group):
    functional = random_functional("total", "density", interactions=0)

    def both(site, targets):
        columns = (site.space.grid.weights * targets.psi).T
        unit = jnp.eye(targets.x.shape[1])
        values = expand_in_functions(site.space, unit)[:, 0]
        return overlaps_with_functions(site.space, columns), values @ columns

    found, expected = at_first(group, functional, both)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_derivatives_are_finite_differences(group):
    functional = random_functional("total", "density", interactions=0)
    flat, unravel = ravel_pytree(functional.params)
    direction = np.random.default_rng(0).normal(size=flat.shape)

    def rows(site, targets):
        def at(t):
            params = unravel(flat + t * direction)
            settings = GaussNewtonSettings(2)
            return residuals(site, params, targets, jax.random.key(0), settings, ALL)

        return at(0.0), at(1e-5), at(-1e-5)

    here, after, before = at_first(group, functional, rows)
    found = here.jacobian @ direction
    values = [
        jnp.concatenate([r.energy[:, None], r.tau[:, None], r.potential], axis=1)
        for r in (after, before)
    ]
    expected = (values[0] - values[1]) / 2e-5
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("robust", [10.0, 1.0])
def test_step_solves_the_least_squares_problem(robust):
    random = np.random.default_rng(0)
    settings = GaussNewtonSettings(damping=1e-3, momentum=0.9, robust=robust)
    weights = LossWeights(2.0, 0.5, 3.0)
    last = {"a": random.normal(size=(4, 5)), "b": random.normal(size=10)}
    r = 5 * random.normal(size=(3, 4))
    jacobian = random.normal(size=(3, 4, 30))
    part = Residuals(*map(jnp.asarray, (r[:, 0], r[:, 1], r[:, 2:], jacobian)))
    parts = [jax.tree.map(lambda x: x[None, :2], part), jax.tree.map(lambda x: x[None, 2:], part)]
    curvature = CurvatureRows(*map(jnp.asarray, (5 * random.normal(size=2), jacobian[0, :2])))
    metrics, step = least_squares_step(settings, weights, 4.0, [*parts, curvature], last)

    scale = np.sqrt([2.0, 0.5, 3.0, 3.0]) * (1 + (r / robust) ** 2) ** -0.25
    a, b = (scale[..., None] * jacobian).reshape(12, 30), (scale * r).reshape(12)
    scale = 2.0 * (1 + (curvature.values / robust) ** 2) ** -0.25
    a = np.concatenate([a, scale[:, None] * curvature.jacobian])
    b = np.concatenate([b, scale * curvature.values])
    before = np.asarray(ravel_pytree(last)[0])
    # The stationary point of |a s - b|² + λ|s - μ s₀|².
    damping = 1e-3 * np.mean(np.sum(a**2, axis=1))
    expected = np.linalg.solve(a.T @ a + damping * np.eye(30), a.T @ b + damping * 0.9 * before)
    np.testing.assert_allclose(ravel_pytree(step)[0], expected, rtol=1e-8, atol=1e-10)
    assert float(metrics["energy"]) == pytest.approx(np.mean(np.abs(r[:, 0])))
    assert float(metrics["curvature"]) == pytest.approx(np.mean(curvature.values**2))
    assert float(metrics["potential"]) == pytest.approx(np.mean(np.sum(r[:, 2:] ** 2, axis=1)))
    loss = np.mean((r**2) @ np.array([2.0, 0.5, 3.0, 3.0]))
    assert float(metrics["loss"]) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": 0}, "directions must be at least 1"),
        ({"kappa": 0.0}, "kappa must be positive"),
        ({"kappa": math.inf}, "kappa must be positive and finite, but is inf"),
        ({"robust": 0.0}, "robust must be positive"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"momentum": 1.0}, "momentum must be from 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(GaussNewtonSettings(), **changes).check()
