"""Semilocal kinetic energy densities of a spin-restricted electron density.

Each density is a function of n and ∇n and is the energy per volume. The gradient enters through
the reduced gradient s = |∇n| / (2 (3π^2)^(1/3) n^(4/3)).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from kineticnet_jax.safe import (
    SPIN_X2_OVER_S2,
    Local,
    energy_density,
    inverse,
    sech_sqrt,
    x_asinh_x,
)

# Kinetic energy of the uniform electron gas: Parr and Yang, Density-Functional Theory of Atoms and
# Molecules (1989), Sec. 3.1.
C_F = 0.3 * (3 * math.pi**2) ** (2 / 3)

# Constantin et al., Phys. Rev. Lett. 106, 186406 (2011): κ is that of PBE exchange, μ the modified
# second-order gradient expansion of the neutral atom.
_APBEK_KAPPA = 0.8040
_APBEK_MU = 0.23889

# Luo, Karasiev and Trickey, Phys. Rev. B 98, 041111(R) (2018).
_LKT_A = 1.3

# Thakkar, Phys. Rev. A 46, 6920 (1992), for x = |∇n_σ| / n_σ^(4/3) of one spin.
_THAKKAR_SQUARE = 0.0055
_THAKKAR_ASINH = 0.0253
_THAKKAR_LINEAR = 0.072
_THAKKAR_SATURATION = 2 * 4 ** (1 / 3)


def _thomas_fermi(p: Local) -> Float[Array, "*points"]:
    return C_F * p.cbrt_n * p.cbrt_n


def _von_weizsaecker(p: Local) -> Float[Array, "*points"]:
    return (5 / 3) * _thomas_fermi(p) * p.s2


def _apbek(p: Local) -> Float[Array, "*points"]:
    saturation = inverse(1 + (_APBEK_MU / _APBEK_KAPPA) * p.s2)
    return _thomas_fermi(p) * (1 + _APBEK_KAPPA * (1 - saturation))


def _lkt_pauli(p: Local) -> Float[Array, "*points"]:
    return _thomas_fermi(p) * sech_sqrt(_LKT_A**2 * p.s2)


def _thakkar(p: Local) -> Float[Array, "*points"]:
    x2 = SPIN_X2_OVER_S2 * p.s2
    square = _THAKKAR_SQUARE * x2 * inverse(1 + _THAKKAR_ASINH * x_asinh_x(x2))
    # The density has a cusp at x = 0. Rounding it off within x of about eps gives it the zero
    # gradient and finite curvature there, and moves its value by less than one rounding.
    x = jnp.sqrt(x2 + float(jnp.finfo(x2.dtype).eps) ** 2)
    linear = (_THAKKAR_LINEAR / _THAKKAR_SATURATION) * (1 - inverse(1 + _THAKKAR_SATURATION * x))
    return _thomas_fermi(p) * (1 + square - linear)


def thomas_fermi(
    n: Float[Array, "points"], grad_n: Float[Array, "points 3"]
) -> Float[Array, "points"]:
    """Thomas-Fermi kinetic energy density.

    tau_TF = C_F n^(5/3), C_F = (3/10) (3π^2)^(2/3)

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4; without influence.

    Returns:
        Kinetic energy density, shape (points), Ha/bohr^3.

    Reference:
        Thomas, Proc. Camb. Philos. Soc. 23, 542 (1927); Fermi, Z. Phys. 48, 73 (1928).
    """
    return energy_density(_thomas_fermi, n, grad_n)


def von_weizsaecker(
    n: Float[Array, "points"], grad_n: Float[Array, "points 3"]
) -> Float[Array, "points"]:
    """Von Weizsäcker kinetic energy density, exact for one orbital.

    tau_vW = |∇n|^2 / (8 n)

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Kinetic energy density, shape (points), Ha/bohr^3.

    Reference:
        von Weizsäcker, Z. Phys. 96, 431 (1935).
    """
    return energy_density(_von_weizsaecker, n, grad_n)


def apbek(n: Float[Array, "points"], grad_n: Float[Array, "points 3"]) -> Float[Array, "points"]:
    """APBEK kinetic energy density, a PBE form with the gradient expansion of the neutral atom.

    tau = tau_TF [1 + κ - κ / (1 + μ s^2 / κ)], κ = 0.804, μ = 0.23889

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Kinetic energy density, shape (points), Ha/bohr^3.

    Reference:
        Constantin, Fabiano, Laricchia and Della Sala, Phys. Rev. Lett. 106, 186406 (2011).
    """
    return energy_density(_apbek, n, grad_n)


def lkt_pauli(
    n: Float[Array, "points"], grad_n: Float[Array, "points 3"]
) -> Float[Array, "points"]:
    """Pauli part of the Luo-Karasiev-Trickey kinetic energy density, LKT without von Weizsäcker.

    tau = tau_TF / cosh(a s), a = 1.3

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Pauli kinetic energy density, shape (points), Ha/bohr^3.

    Reference:
        Luo, Karasiev and Trickey, Phys. Rev. B 98, 041111(R) (2018).
    """
    return energy_density(_lkt_pauli, n, grad_n)


def thakkar(n: Float[Array, "points"], grad_n: Float[Array, "points 3"]) -> Float[Array, "points"]:
    """Thakkar's empirical kinetic energy density.

    tau = tau_TF [1 + 0.0055 x^2 / (1 + 0.0253 x asinh x) - 0.072 x / (1 + 2^(5/3) x)],
    x = 2^(1/3) |∇n| / n^(4/3)

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Kinetic energy density, shape (points), Ha/bohr^3.

    Reference:
        Thakkar, Phys. Rev. A 46, 6920 (1992).
    """
    return energy_density(_thakkar, n, grad_n)
