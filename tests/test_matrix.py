"""Matrices of functions by grid points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kineticnet_jax.matrix import CHUNK, GridMatrix


def functions(points):
    """Three functions with two components each."""
    r2 = jnp.sum(points**2, axis=1)
    return jnp.stack([jnp.exp(-a * r2) * points[:, :2].T for a in (0.1, 1.0, 5.0)])


@pytest.fixture(params=[100, 4 * CHUNK, 9 * 128], ids=["few", "chunks", "small chunks"])
def points(request):
    return jnp.asarray(np.random.default_rng(0).normal(size=(request.param, 3)))


def test_products_are_those_of_the_matrix(points):
    matrix = GridMatrix.of(functions, points, 2)
    expected = functions(points).reshape(3, -1)
    np.testing.assert_array_equal(matrix.matrix, expected)
    random = np.random.default_rng(1)
    c, s = random.normal(size=3), random.normal(size=expected.shape[1])
    np.testing.assert_allclose(c @ matrix, c @ expected, atol=1e-12)
    np.testing.assert_allclose(matrix @ jnp.asarray(s), expected @ s, atol=1e-11)
    batch = jnp.asarray(random.normal(size=(4, 3)))
    found = jax.vmap(lambda c: c @ matrix)(batch)
    np.testing.assert_allclose(found, batch @ expected, atol=1e-12)


def test_derivatives_by_positions(points):
    def value(shift):
        matrix = GridMatrix.of(lambda block: functions(block - shift), points, 2)
        return jnp.sum((jnp.arange(3.0) @ matrix) ** 2)

    shift, step = jnp.array([0.1, 0.0, -0.2]), 1e-5
    change = value(shift + jnp.array([step, 0, 0])) - value(shift - jnp.array([step, 0, 0]))
    assert jax.grad(value)(shift)[0] == pytest.approx(float(change) / (2 * step), rel=1e-7)


def test_long_sums_in_float32_keep_six_digits():
    count = 128 * CHUNK
    values = np.random.default_rng(2).uniform(0.5, 1.0, size=(2, count)).astype(np.float32)
    chunks = jnp.asarray(values.reshape(2, 128, CHUNK).transpose(1, 0, 2))
    ones = jnp.ones(count)
    exact = values.sum(axis=1, dtype=float)
    np.testing.assert_allclose(GridMatrix(chunks) @ ones, exact, rtol=1e-6)
    # The derivative of the other product is the same sum.
    slope = jax.grad(lambda c: jnp.sum((c @ GridMatrix(chunks)).astype(float)))(jnp.ones(2))
    np.testing.assert_allclose(slope, exact, rtol=1e-6)
