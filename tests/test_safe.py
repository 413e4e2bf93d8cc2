"""Primitives, and finiteness and consistency of every energy density built on them."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineticnet_jax.functionals import kinetic, xc
from kineticnet_jax.safe import energy_density, inverse, sech_sqrt, x_asinh_x

REDUCED = 2 * (3 * np.pi**2) ** (1 / 3)
POINTS = 720

FUNCTIONALS = {
    "thomas_fermi": kinetic.thomas_fermi,
    "von_weizsaecker": kinetic.von_weizsaecker,
    "apbek": kinetic.apbek,
    "lkt_pauli": kinetic.lkt_pauli,
    "thakkar": kinetic.thakkar,
    **xc.XC_FUNCTIONALS,
}

DTYPES = [np.float32, np.float64]


@functools.cache
def differentiated(name):
    """Function of (n, ∇n, tangents) giving a density, its gradient and a Hessian-vector product."""
    functional = FUNCTIONALS[name]

    def value_and_gradient(n, grad_n):
        energy, pullback = jax.vjp(functional, n, grad_n)
        return energy, *pullback(jnp.ones_like(energy))

    def derivatives(n, grad_n, n_dot, grad_n_dot):
        values, dots = jax.jvp(value_and_gradient, (n, grad_n), (n_dot, grad_n_dot))
        return *values, *dots[1:]

    return jax.jit(derivatives)


def evaluate(name, n, grad_n, n_dot=None, grad_n_dot=None, dtype=np.float64):
    """`differentiated(name)` with the points repeated to one shape, so that it compiles once."""
    count = len(n)
    n_dot = np.ones(count) if n_dot is None else n_dot
    grad_n_dot = np.ones((count, 3)) if grad_n_dot is None else grad_n_dot
    arguments = [
        np.resize(np.asarray(array, dtype), (POINTS, *np.shape(array)[1:]))
        for array in (n, grad_n, n_dot, grad_n_dot)
    ]
    results = jax.device_get(differentiated(name)(*arguments))
    assert all(result.dtype == dtype for result in results)
    return [result[:count] for result in results]


@functools.cache
def with_derivatives(function):
    """Function of an array giving the elementwise function and three derivatives."""
    derivatives = [function]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    return jax.jit(lambda z: [jax.vmap(derivative)(z) for derivative in derivatives])


def extreme_points():
    """Densities with gradients from zero over exponential tails to huge reduced gradients."""
    densities = [0.0, 1e-45, 1e-38, 1e-35, 1e-32, *10.0 ** np.arange(-30, 4.5, 0.5)]
    points = []
    for n in densities:
        slopes = [0, 1e-30, 1e-15, 1e-8, 2, 5, 10]
        reduced = [1e-6, 1e-3, 1, 1e3, 1e6]
        lengths = [u * n for u in slopes] + [REDUCED * n ** (4 / 3) * s for s in reduced]
        for length in lengths:
            sign = 1 if len(points) % 2 else -1
            points.append((n, length * np.array([0.6, 0.0, 0.8 * sign])))
    n, grad_n = zip(*points, strict=True)
    return np.array(n), np.array(grad_n)


def smooth_points():
    n = np.repeat(10.0 ** np.linspace(-10, 4, 29), 8)
    s = np.tile([0, 1e-3, 0.1, 0.5, 1, 3, 5, 10], 29)
    return n, (REDUCED * s * n ** (4 / 3))[:, None] * np.array([0.6, -0.64, 0.48])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_keeps_its_derivatives_where_its_square_underflows(dtype):
    x = jnp.asarray([2.0, 1e25, -3.0], dtype)
    first = jax.jvp(inverse, (x,), (x,))[1]
    second = jax.jvp(lambda x_: jax.jvp(inverse, (x_,), (x,))[1], (x,), (x,))[1]
    assert first.dtype == dtype
    np.testing.assert_allclose(inverse(x), 1 / x, rtol=1e-6)
    np.testing.assert_allclose(first, -1 / x, rtol=1e-6)
    np.testing.assert_allclose(second, 2 / x, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (sech_sqrt, lambda z: mpmath.sech(mpmath.sqrt(z))),
        (x_asinh_x, lambda z: mpmath.sqrt(z) * mpmath.asinh(mpmath.sqrt(z))),
    ],
)
def test_values_and_three_derivatives(function, exact):
    switches = [1 / 16, 1.0]
    z = np.array([1e-25, 1e-8, 1e-3, *switches, *np.nextafter(switches, 0), 0.5, 4.0, 60.0, 900.0])
    for order, derivative in enumerate(with_derivatives(function)(np.append(z, 0.0))):
        with mpmath.workdps(60):
            expected = [float(mpmath.diff(exact, mpmath.mpf(x), order, h=x * 1e-12)) for x in z]
        np.testing.assert_allclose(derivative[:-1], expected, rtol=10.0 ** (order - 13))
        # Their argument sqrt(z) is not differentiable at 0, but the functions are.
        assert float(derivative[-1]) == pytest.approx(expected[0], rel=1e-14, abs=1e-24)


@pytest.mark.parametrize("dtype", DTYPES)
def test_primitives_are_finite_at_large_arguments(dtype):
    z = np.resize(np.array([0, 1e-38, 1e3, 1e10, 1e22], dtype), 12)
    for function in (sech_sqrt, x_asinh_x):
        for derivative in with_derivatives(function)(z):
            assert derivative.dtype == dtype
            assert np.all(np.isfinite(derivative))
    np.testing.assert_array_equal(sech_sqrt(jnp.asarray(z[3:5])), 0)


def test_energy_density_has_the_derivatives_of_its_formula():
    def per_electron(p):
        return (p.cbrt_n + p.inv_cbrt_n) * p.s2 / (1 + p.s2)

    def formula(n, grad_n):
        root = jnp.cbrt(n)
        s2 = jnp.sum(grad_n**2, axis=-1) / (REDUCED * root**4) ** 2
        return n * (root + 1 / root) * s2 / (1 + s2)

    def orders(function):
        # The reverse derivative of a Hessian-vector product has all derivatives of third order.
        def second(n, grad_n):
            total = jax.grad(lambda n, grad_n: function(n, grad_n).sum(), (0, 1))
            return jax.jvp(total, (n, grad_n), (jnp.cos(n), jnp.sin(grad_n)))

        def third(n, grad_n):
            (first, product), pullback = jax.vjp(second, n, grad_n)
            zeros = jax.tree.map(jnp.zeros_like, first)
            return function(n, grad_n), first, product, pullback((zeros, (n, grad_n)))

        return jax.jit(third)

    key_n, key_grad = jax.random.split(jax.random.key(3))
    n = jax.random.uniform(key_n, (40,), minval=0.2, maxval=3)
    grad_n = 3 * n[:, None] * jax.random.normal(key_grad, (40, 3))
    ours = orders(functools.partial(energy_density, per_electron))(n, grad_n)
    expected = orders(formula)(n, grad_n)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13 * np.max(np.abs(b)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONALS)
def test_vacuum_is_zero_and_begins_below_1e_30(name, dtype):
    n = np.array([0.0, -1e-3, 1e-45, 1e-30, 1e-30])
    grad_n = n[:, None] * np.array([2.0, 2, 2, 2, 0])[:, None] * np.ones(3)
    grad_n[0] = np.finfo(dtype).max
    results = evaluate(name, n, grad_n, dtype=dtype)
    for result in results:
        np.testing.assert_array_equal(result[:2], 0)
    # The energies of the last points, below 1e-40, underflow in float32, but not their derivatives.
    assert np.any(results[1][3:] != 0)
    assert np.isnan(evaluate(name, [np.nan], np.ones((1, 3)), dtype=dtype)[0][0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONALS)
def test_extreme_densities_have_finite_derivatives(name, dtype):
    n, grad_n = extreme_points()
    directions = [(1, np.zeros(3)), (0, np.array([1.0, 0, 0])), (1, np.array([0.3, -0.5, 1.0]))]
    for n_dot, grad_n_dot in directions:
        tangents = (np.full(len(n), n_dot), np.tile(grad_n_dot, (len(n), 1)))
        for result in evaluate(name, n, grad_n, *tangents, dtype=dtype):
            assert np.all(np.isfinite(result))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FUNCTIONALS)),
    dtype=st.sampled_from(DTYPES),
    log_n=st.lists(st.floats(-46, 4), min_size=1, max_size=8),
    log_gradient=st.floats(-40, 6),
    is_tail=st.booleans(),
    direction=st.tuples(*[st.floats(-1, 1)] * 3),
    n_dot=st.floats(-1, 1),
)
def test_no_density_gives_nan(name, dtype, log_n, log_gradient, is_tail, direction, n_dot):
    n = 10.0 ** np.array(log_n)
    length = (
        10.0 ** min(log_gradient, 1) * n if is_tail else REDUCED * n ** (4 / 3) * 10**log_gradient
    )
    grad_n = length[:, None] * np.array(direction)
    tangents = (np.full(len(n), n_dot), np.tile(direction[::-1], (len(n), 1)))
    for result in evaluate(name, n, grad_n, *tangents, dtype=dtype):
        assert np.all(np.isfinite(result))


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_gradient_and_hessian_agree_with_finite_differences(name):
    n, grad_n = smooth_points()
    # Thakkar's cusp at s = 0 has no second derivative.
    used = np.sum(grad_n**2, axis=-1) > 0
    n, grad_n = n[used], grad_n[used]
    n_dot, grad_n_dot = 0.7 * n, 0.3 * grad_n + 0.2 * np.roll(grad_n, 1, axis=-1)
    step = 1e-4
    _, v_n, v_grad, *product = evaluate(name, n, grad_n, n_dot, grad_n_dot)
    plus, minus = (evaluate(name, n + h * n_dot, grad_n + h * grad_n_dot) for h in (step, -step))
    difference = [(a - b) / (2 * step) for a, b in zip(plus, minus, strict=True)]
    s2 = np.sum(grad_n**2, axis=-1) / (REDUCED * n ** (4 / 3)) ** 2
    scale = n ** (5 / 3 if name not in xc.XC_FUNCTIONALS else 4 / 3) * (1 + s2)
    slope = v_n * n_dot + np.sum(v_grad * grad_n_dot, axis=-1)
    length = np.linalg.norm(grad_n, axis=-1)
    assert np.max(np.abs(slope - difference[0]) / scale) < 1e-6
    assert np.max(np.abs(product[0] - difference[1]) * n / scale) < 1e-6
    assert np.max(np.abs(product[1] - difference[2]) * length[:, None] / scale[:, None]) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if name not in xc.XC_FUNCTIONALS])
def test_scaling_of_derivatives_down_to_the_vacuum(name, dtype):
    # From tau(λ^3 n, λ^4 ∇n) = λ^5 tau(n, ∇n): the Hessian times (3 n, 4 ∇n) is
    # (2 dtau/dn, dtau/d∇n).
    n = np.repeat(10.0 ** np.arange(-30, 4.5, 0.5), 8)
    u = np.tile([0, 1e-3, 1, 2, 5, 10, 0, 0], len(n) // 8)
    s = np.tile([0, 0, 0, 0, 0, 0, 0.1, 3], len(n) // 8)
    length = u * n + REDUCED * n ** (4 / 3) * s
    grad_n = (length[:, None] * np.array([0.6, -0.64, 0.48])).astype(dtype)
    n = n.astype(dtype)
    # XLA reads subnormal numbers as zero, but not four times them.
    grad_n[np.abs(grad_n) < np.finfo(dtype).tiny] = 0
    _, v_n, v_grad, product_n, product_grad = evaluate(
        name, n, grad_n, 3 * n, 4 * grad_n, dtype=dtype
    )
    n, grad_n = n.astype(float), grad_n.astype(float)
    s2 = np.sum(grad_n**2, axis=-1) / (REDUCED * n ** (4 / 3)) ** 2
    scale = n ** (2 / 3) * (1 + s2)
    tolerance = 300 * np.finfo(dtype).eps
    assert np.max(np.abs(product_n - 2 * v_n) / scale) < tolerance
    scale_grad = scale * n / np.maximum(np.linalg.norm(grad_n, axis=-1), 1e-200)
    assert np.max(np.abs(product_grad - v_grad) / scale_grad[:, None]) < tolerance


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_float32_agrees_with_float64(name):
    n, grad_n = (array.astype(np.float32) for array in smooth_points())
    single = evaluate(name, n, grad_n, n, grad_n, dtype=np.float32)
    double = evaluate(name, n, grad_n, n, grad_n)
    n, grad_n = n.astype(float), grad_n.astype(float)
    # LYP, LKT and the response of PBE pass through or decay to zero, so that the comparison is on
    # the scale of the uniform gas.
    s2 = np.sum(grad_n**2, axis=-1) / (REDUCED * n ** (4 / 3)) ** 2
    scale = n ** (5 / 3 if name not in xc.XC_FUNCTIONALS else 4 / 3) * (1 + s2)
    length = np.linalg.norm(grad_n, axis=-1)
    for a, b, unit in zip(single, double, [1, n, length, n, length], strict=True):
        error = np.abs(a - b) if b.ndim == 1 else np.linalg.norm(a - b, axis=-1)
        assert np.max(error * unit / scale) < 2e-5
