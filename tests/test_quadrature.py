"""Sums over grid points in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kineticnet_jax import integrate


@pytest.mark.parametrize("size", [1, 2, 1000, 100_003])
def test_float32_sum_is_as_good_as_its_terms(size):
    rng = np.random.default_rng(size)
    weights = rng.uniform(0.0, 1.0, size).astype(np.float32)
    values = (rng.lognormal(sigma=3.0, size=size) * rng.choice([-1, 1, 1], size)).astype(np.float32)
    products = (weights * values).astype(np.float64)
    result = float(integrate(jnp.array(weights), jnp.array(values)))
    # Exact up to the rounding of the result, since the products are taken as they are.
    assert result == pytest.approx(products.sum(), rel=2e-7)
    assert integrate(jnp.array(weights), jnp.array(values)).dtype == jnp.float32


def test_naive_float32_summation_would_fail():
    weights = np.ones(300_001, dtype=np.float32)
    values = np.full(300_001, 0.1, dtype=np.float32)
    exact = 300_001 * float(np.float32(0.1))
    assert abs(float(integrate(jnp.array(weights), jnp.array(values))) - exact) < 2e-3
    naive = np.float32(0)
    for value in values:
        naive += value
    assert abs(float(naive) - exact) > 1.0


def test_derivatives_are_the_other_factor():
    weights, values = jnp.arange(1.0, 6.0), jnp.array([0.5, -1.0, 2.0, 0.0, 3.0])
    gradients = jax.grad(integrate, argnums=(0, 1))(weights, values)
    np.testing.assert_array_equal(gradients[0], values)
    np.testing.assert_array_equal(gradients[1], weights)
    hessian = jax.jacfwd(jax.grad(integrate, argnums=0), argnums=1)(weights, values)
    np.testing.assert_array_equal(hessian, np.eye(5))
    batched = jax.vmap(integrate, in_axes=(None, 0))(weights, jnp.stack([values, 2 * values]))
    np.testing.assert_allclose(batched, [weights @ values, 2 * weights @ values], rtol=1e-15)
