"""The minimiser on functions whose minimum is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kineticnet_jax import minimize

SIZE = 30
EIGENVALUES = np.sort(np.random.default_rng(0).uniform(-3.0, 8.0, SIZE))
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]
MATRIX = jnp.array(ROTATION @ np.diag(EIGENVALUES) @ ROTATION.T)
START = jnp.array(np.random.default_rng(2).normal(size=SIZE))
METHODS = ["newton", "lbfgs"]


def rayleigh_quotient(z):
    return jnp.vdot(z, MATRIX @ z) / jnp.vdot(z, z), {"first": z[0]}


def unit(z):
    return z / jnp.linalg.norm(z)


def run(objective, z, method, steps=200, tolerance=1e-8, floor=-1e9):
    @jax.jit
    def search(z):
        state = minimize.start(unit(z), {"first": jnp.nan}, steps)
        return minimize.advance(objective, unit, state, method, tolerance, floor, steps)

    return search(z)


@pytest.mark.parametrize("method", METHODS)
def test_lowest_eigenvalue_is_found(method):
    state = run(rayleigh_quotient, START, method)
    assert state.status == minimize.CONVERGED
    assert state.value == pytest.approx(EIGENVALUES[0], abs=1e-13)
    assert abs(state.z @ ROTATION[:, 0]) == pytest.approx(1.0, abs=1e-12)
    assert state.rest["first"] == state.z[0]


def test_newton_leaves_a_saddle_point():
    # Close to the second eigenvector the gradient nearly vanishes, but the curvature is negative.
    z = ROTATION[:, 1] + 1e-6 * ROTATION[:, 0]
    state = run(rayleigh_quotient, jnp.array(z), "newton")
    assert state.value == pytest.approx(EIGENVALUES[0], abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_rounding_of_values_does_not_end_the_search(method):
    rounding = 1e-9

    def rounded(z):
        value, rest = rayleigh_quotient(z)
        step = jnp.round(value / rounding) * rounding
        return value + jax.lax.stop_gradient(step - value), rest

    def status(told):
        start = minimize.start(unit(START), {"first": jnp.nan}, 200)
        return minimize.advance(rounded, unit, start, method, 1e-8, -1e9, 200, told).status

    assert status(rounding) == minimize.CONVERGED
    assert status(None) != minimize.CONVERGED


@pytest.mark.parametrize("method", METHODS)
def test_values_never_rise_and_steps_are_bounded(method):
    state = run(rayleigh_quotient, START, method)
    energies = np.asarray(state.history.energy)[: int(state.steps) + 1]
    assert np.all(np.diff(energies) <= 1e-13)
    one = run(rayleigh_quotient, START, method, steps=1)
    cosine = jnp.vdot(one.z, unit(START))
    assert jnp.arccos(cosine) <= np.arctan(minimize.FIRST_RADIUS) + 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_resuming_gives_the_same_path(method):
    objective = rayleigh_quotient
    start = minimize.start(unit(START), {"first": jnp.nan}, 200)
    advance = jax.jit(
        partial(minimize.advance, objective, unit, method=method, tolerance=1e-8, floor=-1e9)
    )
    whole = advance(state=start, limit=200)
    parts = start
    for limit in range(3, 201, 3):
        parts = advance(state=parts, limit=min(limit, 200))
    assert int(parts.steps) == int(whole.steps)
    np.testing.assert_allclose(parts.z, whole.z, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_unbounded_function_ends_as_diverged_with_the_state_before(method):
    def pit(z):
        return -1 / (1e-9 + 1 - jnp.abs(unit(z)[0])), {"first": z[0]}

    state = run(pit, START, method, floor=-1e4)
    assert state.status == minimize.DIVERGED
    assert state.value > -1e4
    assert jnp.all(jnp.isfinite(state.z))


@pytest.mark.parametrize("method", METHODS)
def test_not_a_number_keeps_the_last_good_state(method):
    def broken(z):
        value, rest = rayleigh_quotient(z)
        return jnp.where(value < 0.5 * EIGENVALUES[0], jnp.nan, value), rest

    state = run(broken, START, method)
    assert state.status == minimize.NOT_A_NUMBER
    assert jnp.isfinite(state.value)
    nowhere = run(lambda z: (jnp.nan * z[0], {"first": z[0]}), START, method)
    assert nowhere.status == minimize.NOT_A_NUMBER
    assert nowhere.steps == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_kink_ends_as_stagnation(method):
    def kinked(z):
        return jnp.sum(jnp.abs(unit(z))), {"first": z[0]}

    state = run(kinked, START, method, steps=1000)
    assert state.status == minimize.STAGNATED


@pytest.mark.parametrize("method", METHODS)
def test_minimisation_can_be_batched(method):
    starts = jnp.stack([START, -START, START[::-1]])
    states = jax.vmap(lambda z: run(rayleigh_quotient, z, method))(starts)
    np.testing.assert_allclose(states.value, EIGENVALUES[0], atol=1e-12)
