"""Exchange-correlation energy densities against libxc, mpmath and exact relations."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from libxc_reference import N, S, differentiated, gradient, libxc_derivatives, on_grid

from kineticnet_jax.functionals import xc
from kineticnet_jax.safe import energy_density

K_F = (3 * np.pi**2) ** (1 / 3)

PARTS = {
    "LDA_X": functools.partial(energy_density, xc.slater_exchange),
    "LDA_C_VWN": functools.partial(energy_density, xc.vwn_correlation),
    "LDA_C_PW_MOD": functools.partial(energy_density, xc.pw92_correlation),
    "GGA_X_PBE": functools.partial(energy_density, xc.pbe_exchange),
    "GGA_C_PBE": functools.partial(energy_density, xc.pbe_correlation),
    "GGA_X_B88": functools.partial(energy_density, xc.b88_exchange),
    "GGA_C_LYP": functools.partial(energy_density, xc.lyp_correlation),
}

SUMS = {
    "LDA_X,LDA_C_VWN": xc.lda,
    "GGA_X_PBE,GGA_C_PBE": xc.pbe,
    "GGA_X_B88,GGA_C_LYP": xc.blyp,
}


@functools.cache
def libxc_on_grid(code):
    return libxc_derivatives(code, N, S, order=2)


def scales(code):
    """Sizes of the terms that cancel in the energy density and its derivatives in n and σ."""
    e, d_n, d_sigma = np.abs(libxc_on_grid(code))[:3]
    if code == "GGA_C_PBE":
        # In libxc ε_PW92 and H cancel as (A t^2)^-2, to 1e-8 of the former at s = 50. They do not
        # cancel here; test_correlation_agrees_with_mpmath has the same points without this scale.
        uniform_e, uniform_d_n, _ = np.abs(libxc_on_grid("LDA_C_PW_MOD"))[:3]
        sigma = np.maximum(gradient(N, S)[:, 0], 1e-100) ** 2
        return e + 1e-3 * uniform_e, d_n + 1e-3 * uniform_d_n, d_sigma + 1e-3 * uniform_e / sigma
    return e, d_n, d_sigma


@pytest.mark.parametrize("code", PARTS)
def test_energy_and_first_derivatives_agree_with_libxc(code):
    e, d_n, d_sigma = libxc_on_grid(code)[:3]
    scale_e, scale_n, scale_sigma = scales(code)
    energy, (v_n, v_grad), (_, curvature) = on_grid(PARTS[code])
    grad_n = gradient(N, S)
    # The logarithm of PW92 costs libxc four digits at n = 1e-10; everything else agrees to 1e-12.
    tolerance = 1e-10 if "PBE" in code or "PW" in code else 1e-12
    assert np.all(np.abs(energy - e) <= tolerance * scale_e)
    assert np.all(np.abs(v_n - d_n) <= tolerance * scale_n)
    deviation = np.abs(v_grad - 2 * d_sigma[:, None] * grad_n)
    assert np.all(deviation <= 2 * tolerance * scale_sigma[:, None] * grad_n)
    # The curvature across ∇n is 2 de/dσ and gives de/dσ at s = 0 as well.
    assert np.all(np.abs(curvature[2, :, 1] - 2 * d_sigma) <= 2 * tolerance * scale_sigma)


@pytest.mark.parametrize("code", SUMS)
def test_exchange_correlation_agrees_with_libxc(code):
    e, d_n, d_sigma = libxc_on_grid(code)[:3]
    # Exchange and correlation cancel, for PBE exactly in de/dσ at s = 0.
    exchange, correlation = (np.abs(libxc_on_grid(part)[:3]) for part in code.split(","))
    scale_e, scale_n, scale_sigma = exchange + correlation
    grad_n = gradient(N, S)

    @jax.jit
    def value_and_gradient(n, grad_n):
        energy, pullback = jax.vjp(SUMS[code], n, grad_n)
        return energy, *pullback(jnp.ones_like(energy))

    energy, v_n, v_grad = value_and_gradient(N, grad_n)
    tolerance = 1e-10 if "PBE" in code else 1e-12
    assert np.all(np.abs(energy - e) <= tolerance * scale_e)
    assert np.all(np.abs(v_n - d_n) <= tolerance * scale_n)
    deviation = np.abs(v_grad - 2 * d_sigma[:, None] * grad_n)
    assert np.all(deviation <= 2 * tolerance * scale_sigma[:, None] * grad_n)


@pytest.mark.parametrize("code", PARTS)
def test_second_derivatives_agree_with_libxc(code):
    # Below s = 1e-3 libxc loses digits of the second derivative in σ.
    used = S >= 1e-3
    n, s = N[used], S[used]
    _, _, d_sigma, d_nn, d_nsigma, d_sigma2 = libxc_on_grid(code)[:, used]
    g = gradient(n, s)[:, 0]
    hessian_n, hessian_grad = (block[:, used] for block in on_grid(PARTS[code])[2])
    # The second derivatives pass through zero; each is compared on its dimensional scale.
    scale = 0.7386 * n ** (4 / 3) * (1 + s**2)
    assert np.max(np.abs(hessian_n[0] - d_nn) * n**2 / scale) < 1e-10
    assert np.max(np.abs(hessian_n[1] - 2 * g * d_nsigma) * n * g / scale) < 1e-10
    assert np.max(np.abs(hessian_grad[0, :, 0] - 2 * g * d_nsigma) * n * g / scale) < 1e-10
    along = 2 * d_sigma + 4 * g**2 * d_sigma2
    assert np.max(np.abs(hessian_grad[1, :, 0] - along) * g**2 / scale) < 1e-10


def vwn(n, _):
    a, b, c, x0 = (mpmath.mpf(value) for value in ("0.0310907", "3.72744", "12.9352", "-0.10498"))
    x = (3 / (4 * mpmath.pi * n)) ** mpmath.mpf("1/6")
    q = mpmath.sqrt(4 * c - b * b)
    angle = mpmath.atan(q / (2 * x + b)) * 2 / q
    polynomial = x * x + b * x + c
    at_x0 = mpmath.log((x - x0) ** 2 / polynomial) + (b + 2 * x0) * angle
    weight = b * x0 / (x0 * x0 + b * x0 + c)
    return n * a * (mpmath.log(x * x / polynomial) + b * angle - weight * at_x0)


def pw92(n, _):
    a, alpha, b1, b2, b3, b4 = (
        mpmath.mpf(value)
        for value in ("0.0310907", "0.21370", "7.5957", "3.5876", "1.6382", "0.49294")
    )
    rs = mpmath.cbrt(3 / (4 * mpmath.pi * n))
    x = mpmath.sqrt(rs)
    denominator = 2 * a * (b1 * x + b2 * rs + b3 * x**3 + b4 * rs**2)
    return -2 * n * a * (1 + alpha * rs) * mpmath.log(1 + 1 / denominator)


def pbe_correlation(n, g):
    beta = mpmath.mpf("0.06672455060314922")
    gamma = (1 - mpmath.log(2)) / mpmath.pi**2
    uniform = pw92(n, g) / n
    a = beta / gamma / (mpmath.exp(-uniform / gamma) - 1)
    k_s = mpmath.sqrt(4 * mpmath.cbrt(3 * mpmath.pi**2 * n) / mpmath.pi)
    t2 = (g / (2 * k_s * n)) ** 2
    ratio = (1 + a * t2) / (1 + a * t2 + (a * t2) ** 2)
    return n * (uniform + gamma * mpmath.log(1 + beta / gamma * t2 * ratio))


@pytest.mark.parametrize(
    ("code", "reference"),
    [("LDA_C_VWN", vwn), ("LDA_C_PW_MOD", pw92), ("GGA_C_PBE", pbe_correlation)],
)
def test_correlation_agrees_with_mpmath(code, reference):
    picked = [(n, s) for n in (1e-25, 1e-10, 1e-5, 1.0, 1e4) for s in (1e-3, 1.0, 20.0, 50.0)]
    n, s = np.resize(picked, (N.size, 2)).T
    grad_n = gradient(n, s)
    energy, (v_n, v_grad), _ = differentiated(PARTS[code])(n, grad_n)
    with mpmath.workdps(60):
        for i in range(len(picked)):
            point = (mpmath.mpf(n[i]), mpmath.mpf(grad_n[i, 0]))
            assert float(energy[i]) == pytest.approx(float(reference(*point)), rel=1e-12)
            d_n = mpmath.diff(reference, point, (1, 0), h=point[0] * mpmath.mpf("1e-20"))
            assert float(v_n[i]) == pytest.approx(float(d_n), rel=1e-11)
            d_g = mpmath.diff(reference, point, (0, 1), h=point[1] * mpmath.mpf("1e-20"))
            assert float(v_grad[i, 0]) == pytest.approx(float(d_g), rel=1e-11)


def test_uniform_limits():
    uniform = S == 0
    slater = on_grid(PARTS["LDA_X"])[0][uniform]
    pw92 = on_grid(PARTS["LDA_C_PW_MOD"])[0][uniform]
    for code in ("GGA_X_PBE", "GGA_X_B88"):
        np.testing.assert_allclose(on_grid(PARTS[code])[0][uniform], slater, rtol=1e-14)
    np.testing.assert_allclose(on_grid(PARTS["GGA_C_PBE"])[0][uniform], pw92, rtol=1e-13)
    # VWN and PW92 fit the same simulations of the electron gas.
    physical = (N[uniform] > 1e-4) & (N[uniform] < 10)
    vwn = on_grid(PARTS["LDA_C_VWN"])[0][uniform]
    np.testing.assert_allclose(vwn[physical], pw92[physical], rtol=0.02)


def test_pbe_has_no_linear_response_to_the_squared_gradient():
    uniform = S == 0
    exchange = on_grid(PARTS["GGA_X_PBE"])[2][1][1, uniform, 0]
    slater = on_grid(PARTS["LDA_X"])[0][uniform]
    d2_s2 = 2 / (2 * K_F * N[uniform] ** (4 / 3)) ** 2
    np.testing.assert_allclose(exchange, 0.2195149727645171 * slater * d2_s2, rtol=1e-13)
    correlation = on_grid(PARTS["GGA_C_PBE"])[2][1][1, uniform, 0]
    np.testing.assert_allclose(correlation, -exchange, rtol=1e-13)


@pytest.mark.parametrize("code", ["LDA_X", "GGA_X_PBE", "GGA_X_B88"])
@pytest.mark.parametrize("scale", [0.13, 7.9])
def test_coordinate_scaling_of_exchange(code, scale):
    scaled, _, _ = differentiated(PARTS[code])(scale**3 * N, scale**4 * gradient(N, S))
    np.testing.assert_allclose(scaled, scale**4 * on_grid(PARTS[code])[0], rtol=1e-13)


def test_pbe_correlation_lies_between_zero_and_the_uniform_gas():
    pbe, uniform = on_grid(PARTS["GGA_C_PBE"])[0], on_grid(PARTS["LDA_C_PW_MOD"])[0]
    assert np.all(pbe < 0)
    assert np.all(pbe >= uniform * (1 + 1e-14))


def test_slater_exchange_energy_of_the_helium_density():
    # n = 2 Z^3 exp(-2 Z r) / π with Z = 27/16, for which ∫ n^(4/3) d^3r = (2/π)^(4/3) Z 27 π / 64.
    z = 27 / 16
    x, weights = np.polynomial.laguerre.laggauss(20)
    r = 3 * x / (8 * z)
    density = jnp.asarray(2 * z**3 / np.pi * np.exp(-2 * z * r))
    e = jax.jit(PARTS["LDA_X"])(density, jnp.zeros((20, 3)))
    energy = np.sum(3 / (8 * z) * weights * np.exp(x) * 4 * np.pi * r**2 * e)
    exact = -0.75 * (3 / np.pi) ** (1 / 3) * (2 / np.pi) ** (4 / 3) * z * 27 * np.pi / 64
    np.testing.assert_allclose(energy, exact, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "functional"), [("lda", xc.lda), ("pbe", xc.pbe), ("blyp", xc.blyp)]
)
def test_functional_by_name(name, functional):
    assert xc.XC_FUNCTIONALS[name] is functional
    assert len(xc.XC_FUNCTIONALS) == 3
