"""Kinetic energy densities against libxc and exact relations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libxc_reference import REDUCED, N, S, differentiated, gradient, libxc_derivatives, on_grid

from kineticnet_jax.functionals import kinetic


def lkt(n, grad_n):
    return kinetic.von_weizsaecker(n, grad_n) + kinetic.lkt_pauli(n, grad_n)


FUNCTIONALS = {
    "LDA_K_TF": kinetic.thomas_fermi,
    "GGA_K_VW": kinetic.von_weizsaecker,
    "GGA_K_APBE": kinetic.apbek,
    "GGA_K_THAKKAR": kinetic.thakkar,
    "GGA_K_LKT": lkt,
}


@pytest.mark.parametrize("code", FUNCTIONALS)
def test_energy_and_first_derivatives_agree_with_libxc(code):
    e, d_n, d_sigma = libxc_derivatives(code, N, S, order=1)
    energy, (v_n, v_grad), (_, curvature) = on_grid(FUNCTIONALS[code])
    # At s = 0 libxc evaluates at the threshold of σ, which makes von Weizsäcker 1e-231 instead
    # of 0. All other numbers here are above 1e-18.
    np.testing.assert_allclose(energy, e, rtol=1e-12, atol=1e-200)
    np.testing.assert_allclose(v_n, d_n, rtol=1e-12, atol=1e-200)
    np.testing.assert_allclose(v_grad, 2 * d_sigma[:, None] * gradient(N, S), rtol=1e-12)
    # The curvature across ∇n is 2 de/dσ and gives de/dσ at s = 0 as well, except for Thakkar's
    # cusp, where de/dσ diverges.
    defined = (S > 0) | (code != "GGA_K_THAKKAR")
    np.testing.assert_allclose(curvature[2, defined, 1], 2 * d_sigma[defined], rtol=1e-12)


@pytest.mark.parametrize("code", FUNCTIONALS)
def test_second_derivatives_agree_with_libxc(code):
    # Below s = 1e-3 libxc loses digits of the second derivative in σ.
    used = S >= 1e-3
    n, s = N[used], S[used]
    _, _, d_sigma, d_nn, d_nsigma, d_sigma2 = libxc_derivatives(code, n, s, order=2)
    g = gradient(n, s)[:, 0]
    hessian_n, hessian_grad = (block[:, used] for block in on_grid(FUNCTIONALS[code])[2])
    # The second derivatives pass through zero; each is compared on its dimensional scale.
    scale = kinetic.C_F * n ** (5 / 3) * (1 + s**2)
    assert np.max(np.abs(hessian_n[0] - d_nn) * n**2 / scale) < 1e-11
    assert np.max(np.abs(hessian_n[1] - 2 * g * d_nsigma) * n * g / scale) < 1e-11
    assert np.max(np.abs(hessian_grad[0, :, 0] - 2 * g * d_nsigma) * n * g / scale) < 1e-11
    along = 2 * d_sigma + 4 * g**2 * d_sigma2
    assert np.max(np.abs(hessian_grad[1, :, 0] - along) * g**2 / (scale * s)) < 1e-11


@pytest.mark.parametrize("code", ["LDA_K_TF", "GGA_K_APBE", "GGA_K_THAKKAR", "GGA_K_LKT"])
def test_uniform_limit_is_thomas_fermi(code):
    assert pytest.approx(2.871234000188192, rel=1e-15) == kinetic.C_F
    uniform = S == 0
    tau = on_grid(FUNCTIONALS[code])[0][uniform]
    np.testing.assert_allclose(tau, kinetic.C_F * N[uniform] ** (5 / 3), rtol=1e-14)


@pytest.mark.parametrize(
    ("code", "coefficient"),
    [("GGA_K_VW", 5 / 3), ("GGA_K_APBE", 0.23889), ("GGA_K_LKT", 5 / 3 - 1.3**2 / 2)],
)
def test_gradient_expansion_at_zero_gradient(code, coefficient):
    uniform = S == 0
    hessian = on_grid(FUNCTIONALS[code])[2][1][1, uniform]
    d2_s2 = 2 / (REDUCED * N[uniform] ** (4 / 3)) ** 2
    expected = coefficient * kinetic.C_F * N[uniform] ** (5 / 3) * d2_s2
    np.testing.assert_allclose(hessian[:, 0], expected, rtol=1e-13)
    np.testing.assert_array_equal(hessian[:, 1:], 0)


def test_thakkar_has_no_gradient_at_its_cusp():
    n = np.geomspace(1e-6, 1e3, len(N))
    direction = np.array([0.6, 0.0, -0.8])
    _, (_, v_grad), _ = differentiated(kinetic.thakkar)(n, np.zeros((len(N), 3)))
    np.testing.assert_array_equal(v_grad, 0)
    # Off the cusp the slope is the one-sided limit -0.072 * 2^(1/3) C_F n^(1/3).
    grad_n = 1e-9 * n[:, None] ** (4 / 3) * direction
    _, (_, v_grad), _ = differentiated(kinetic.thakkar)(n, grad_n)
    limit = -0.072 * 2 ** (1 / 3) * kinetic.C_F * np.cbrt(n)
    np.testing.assert_allclose(v_grad @ direction, limit, rtol=1e-7)


@pytest.mark.parametrize("code", FUNCTIONALS)
@pytest.mark.parametrize("scale", [0.13, 7.9])
def test_coordinate_scaling(code, scale):
    scaled, _, _ = differentiated(FUNCTIONALS[code])(scale**3 * N, scale**4 * gradient(N, S))
    np.testing.assert_allclose(scaled, scale**5 * on_grid(FUNCTIONALS[code])[0], rtol=1e-13)


def test_von_weizsaecker_is_exact_for_the_hydrogen_atom():
    # The orbital exp(-r)/sqrt(π) has |∇φ|^2 / 2 = φ^2 / 2.
    r = np.linspace(0.01, 20, 200)
    n = np.exp(-2 * r) / np.pi
    grad_n = -2 * n[:, None] * np.array([2.0, -1.0, 2.0]) / 3
    tau = jax.jit(kinetic.von_weizsaecker)(n, grad_n)
    np.testing.assert_allclose(tau, n / 2, rtol=1e-13)


def test_thomas_fermi_energy_of_the_hydrogen_density():
    x, weights = np.polynomial.laguerre.laggauss(20)
    r = 0.3 * x
    n = jnp.asarray(np.exp(-2 * r) / np.pi)
    tau = jax.jit(kinetic.thomas_fermi)(n, jnp.zeros((20, 3)))
    energy = np.sum(0.3 * weights * np.exp(x) * 4 * np.pi * r**2 * tau)
    # 4π ∫ r^2 exp(-10 r / 3) dr = 8π (3/10)^3.
    np.testing.assert_allclose(energy, kinetic.C_F * np.pi ** (-2 / 3) * 8 * 0.027, rtol=1e-12)


def test_pauli_part_of_lkt_vanishes_at_large_gradients():
    n = np.array([1e-9, 1e-3, 1.0, 1e3])
    grad_n = gradient(n, np.array([1e3, 2e3, 1e4, 1e6]))

    @jax.jit
    def value_and_gradient(n, grad_n):
        tau, pullback = jax.vjp(kinetic.lkt_pauli, n, grad_n)
        return tau, *pullback(jnp.ones_like(tau))

    for result in value_and_gradient(n, grad_n):
        np.testing.assert_array_equal(result, 0)
