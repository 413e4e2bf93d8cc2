"""Radial functions: tabulated values, gradients, limits, and what they can represent."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.kinetic import C_F
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.radial import (
    gaussian_basis,
    geometric_sequence,
    log_gaussian_basis,
    polynomial_cutoff,
    smooth_cutoff,
)

CENTRES = (0.02, 0.7)
EXPONENTS = (0.3, 40.0)
CUTOFF = 3.0
DTYPES = [np.float32, np.float64]

# The documented formulas, for mpmath, of function k.
FORMULAS = {
    "gaussian l=0": lambda k, r: mpmath.exp(-EXPONENTS[k] * r**2),
    "gaussian l=1": lambda k, r: mpmath.sqrt(EXPONENTS[k]) * r * mpmath.exp(-EXPONENTS[k] * r**2),
    "gaussian l=2": lambda k, r: EXPONENTS[k] * r**2 * mpmath.exp(-EXPONENTS[k] * r**2),
    "log": lambda k, r: mpmath.exp(-2 * mpmath.log(r / CENTRES[k]) ** 2),
    "polynomial": lambda k, r: 1 - 28 * (r / 3) ** 6 + 48 * (r / 3) ** 7 - 21 * (r / 3) ** 8,
    "squared": lambda k, r: (1 - r**2 / 9) ** 3 * (1 + 3 * r**2 / 9 + 6 * r**4 / 81),
    "smooth": lambda k, r: mpmath.exp(1 - 1 / (1 - (r / 3) ** 2)),
}
FUNCTIONS = {
    "gaussian l=0": lambda r: gaussian_basis(r, jnp.array(EXPONENTS, r.dtype)),
    "gaussian l=1": lambda r: gaussian_basis(r, jnp.array(EXPONENTS, r.dtype), 1),
    "gaussian l=2": lambda r: gaussian_basis(r, jnp.array(EXPONENTS, r.dtype), 2),
    "log": lambda r: log_gaussian_basis(r, jnp.array(CENTRES, r.dtype)),
    "polynomial": lambda r: polynomial_cutoff(r, CUTOFF)[..., None],
    "squared": lambda r: polynomial_cutoff(r**2, CUTOFF**2, 3)[..., None],
    "smooth": lambda r: smooth_cutoff(r, CUTOFF)[..., None],
}
CUTOFFS = {
    "order 2": partial(polynomial_cutoff, order=2),
    "order 3": partial(polynomial_cutoff, order=3),
    "order 6": polynomial_cutoff,
    "order 15": partial(polynomial_cutoff, order=15),
    "smooth": smooth_cutoff,
}


@cache
def differentiated(name):
    """Values, first and second derivatives at many distances."""
    function = FUNCTIONS[name]
    first = jax.jacfwd(function)
    second = jax.jacfwd(jax.jacrev(function))
    return jax.jit(jax.vmap(lambda r: (function(r), first(r), second(r))))


@cache
def cutoff_and_slope(name, radius):
    return jax.jit(jax.value_and_grad(lambda r: CUTOFFS[name](r, radius)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_the_formula(name):
    points = (1e-3, 0.05, 0.4, 1.3, 1.5, 1.7, 2.9)
    values, slopes, _ = differentiated(name)(jnp.array(points))
    with mpmath.workdps(40):
        for i, r in enumerate(points):
            for k in range(values.shape[1]):
                exact = partial(FORMULAS[name], k)
                value = float(exact(mpmath.mpf(r)))
                slope = float(mpmath.diff(exact, mpmath.mpf(r)))
                assert float(values[i, k]) == pytest.approx(value, rel=1e-12, abs=0)
                assert float(slopes[i, k]) == pytest.approx(slope, rel=1e-10, abs=1e-300)


def test_tabulated_values():
    np.testing.assert_allclose(
        gaussian_basis(jnp.array([0.0, 1.0]), jnp.array([1.0, 4.0])),
        [[1.0, 1.0], [0.36787944117144232, 0.018315638888734180]],
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        log_gaussian_basis(jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0])),
        [[0.0], [1.0], [0.38254613147039529]],
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        polynomial_cutoff(jnp.array([0.0, 1.0, 2.0, 3.0]), 2.0), [1, 0.85546875, 0, 0], rtol=1e-14
    )
    np.testing.assert_allclose(
        smooth_cutoff(jnp.array([0.0, 1.0, 2.0, 3.0]), 2.0),
        [1, 0.71653131057378925, 0, 0],
        rtol=1e-14,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_finite_everywhere(name, dtype):
    edge = np.array(CUTOFF, dtype)
    near = [np.nextafter(edge, dtype(0)), edge, np.nextafter(edge, dtype(9)), edge - dtype(1e-12)]
    tiny = float(np.finfo(dtype).tiny)
    r = np.concatenate([[0, 1e-30, tiny], np.geomspace(1e-30, 1e6, 800), edge * 0.9995, near], None)
    results = differentiated(name)(jnp.asarray(r, dtype))
    assert results[0].dtype == dtype
    for values in results:
        assert np.all(np.isfinite(values))
    beyond = r.astype(dtype) >= edge
    if not name.startswith(("gaussian", "log")):
        for values in results:
            assert np.all(np.asarray(values)[beyond] == 0)


def test_log_gaussians_are_finite_for_any_sensible_width():
    r = jnp.asarray(np.concatenate([[0.0], np.geomspace(1e-300, 1e6, 500)]))
    for width in (0.05, 0.3, 1.0, 3.0):
        function = partial(log_gaussian_basis, centres=jnp.array(CENTRES), width=width)
        second = jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(function))))
        assert np.all(np.isfinite(second(r)))


@pytest.mark.parametrize("name", CUTOFFS)
@given(x=st.floats(0, 1.2), radius=st.sampled_from([0.3, 9.0]))
@settings(max_examples=40, deadline=None)
def test_cutoffs_fall_from_one_to_zero(name, x, radius):
    r = x * radius
    value, slope = cutoff_and_slope(name, radius)(jnp.asarray(r))
    assert 0 <= float(value) <= 1
    assert float(slope) <= 1e-12
    if r >= radius:
        assert float(value) == 0
        assert float(slope) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CUTOFFS)
def test_cutoffs_are_monotone_to_rounding(name, dtype):
    # Steps of a few roundings at the ends and where the polynomial changes its form.
    steps = 4 * np.finfo(dtype).eps * np.arange(-100, 101)
    r = np.sort(np.concatenate([np.linspace(0, 1.1, 1001), np.abs(steps), 0.5 + steps, 1 + steps]))
    values = np.asarray(jax.jit(CUTOFFS[name], static_argnums=1)(jnp.asarray(r, dtype), 1.0))
    assert values[0] == 1
    assert values[-1] == 0
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.diff(values).max() <= 4 * np.finfo(dtype).eps


def test_polynomial_cutoff_has_two_continuous_derivatives():
    # u = p(p+1)(p+2)/6 h³ + O(h⁴) at the distance h before the cutoff.
    h = 1e-6
    r = jnp.array([CUTOFF * (1 - h), CUTOFF, CUTOFF * (1 + h)])
    values, slopes, curvatures = differentiated("polynomial")(r)
    np.testing.assert_allclose(values[:, 0], [56 * h**3, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(slopes[:, 0] * CUTOFF, [-168 * h**2, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(curvatures[:, 0] * CUTOFF**2, [336 * h, 0, 0], rtol=1e-4)


def test_geometric_sequence():
    np.testing.assert_allclose(geometric_sequence(0.5, 8.0, 5), [0.5, 1, 2, 4, 8], rtol=1e-14)
    np.testing.assert_allclose(geometric_sequence(8.0, 0.5, 3), [8, 2, 0.5], rtol=1e-14)
    bad = [(0.0, 1.0, 3), (1.0, -1.0, 3), (1.0, 2.0, 1), (float("nan"), 1.0, 3)]
    for arguments in [*bad, (1.0, float("inf"), 3)]:
        with pytest.raises(InputError, match="positive ends"):
            geometric_sequence(*arguments)


def spherical(filters, r):
    """The filters with l = 0 at distances r, divided by Y_00."""
    points = r[:, None] * jnp.array([1.0, 0.0, 0.0])
    only = replace(filters, counts=filters.counts[:1])
    return np.sqrt(4 * np.pi) * only.evaluate(points, jnp.zeros((1, 3)))[0].T


FILTERS = {
    "default": partial(spherical, Filters()),
    "24 log gaussians": lambda r: (
        log_gaussian_basis(r, jnp.asarray(geometric_sequence(2e-3, 8.0, 24)))
        * polynomial_cutoff(r**2, 36.0, 3)[:, None]
    ),
}


@cache
def radial_quadrature(count=600):
    """Nodes up to 12 bohr, dense at the nucleus, and weights of ∫ 4π r² dr."""
    x, weights = np.polynomial.legendre.leggauss(count)
    t = 0.5 * (x + 1)
    r = 12 * t**4
    return r, 0.5 * weights * 48 * t**3 * 4 * np.pi * r**2


@cache
def filters(name):
    """Basis times cutoff at the nodes of the quadrature."""
    return np.asarray(FILTERS[name](jnp.asarray(radial_quadrature()[0])))


@pytest.mark.parametrize("charge", range(1, 11))
@pytest.mark.parametrize("name", FILTERS)
def test_filters_represent_a_hydrogen_like_density_and_its_potential(name, charge):
    """Least-squares fits of n = 2 Z³/π exp(-2Zr) and of v = ⁵⁄₃ c_F n^(2/3), cusp and tail.

    The Thomas-Fermi energy of the fitted density, and the first-order energy ³⁄₅ ∫ n v of the
    fitted potential, are right to 1e-4. So are ∫ v |n_fit - n| and ∫ n |v_fit - v| dr, the most
    that errors of the fit could add to the energy if none of them cancelled.
    """
    functions = filters(name)
    r, weights = radial_quadrature()
    n = 2 * charge**3 / np.pi * np.exp(-2 * charge * r)
    v = 5 / 3 * C_F * n ** (2 / 3)
    tau = C_F * n ** (5 / 3)
    energy = weights @ tau
    # Squares of the energy density of the error in place of its absolute value: the first term
    # gives the shells of the atom equal weight, the second keeps the tail of the density small.
    local = tau / tau.max()
    importance = local**-0.25 * (charge * r) ** 2 + 1e-4 * local**-0.8

    def fit(target, conjugate):
        rows = np.sqrt(weights * importance) * conjugate
        matrix = rows[:, None] * functions
        norms = np.linalg.norm(matrix, axis=0)
        coefficients = np.linalg.lstsq(matrix / norms, rows * target, rcond=1e-12)[0]
        fitted = functions @ (coefficients / norms)
        assert weights @ (conjugate * np.abs(fitted - target)) <= 1e-4 * energy
        return fitted

    density, potential = fit(n, v), fit(v, n)
    assert weights @ (C_F * np.maximum(density, 0) ** (5 / 3)) == pytest.approx(energy, rel=1e-4)
    assert 0.6 * (weights @ (n * potential)) == pytest.approx(energy, rel=1e-4)
