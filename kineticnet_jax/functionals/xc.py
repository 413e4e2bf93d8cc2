"""Semilocal exchange-correlation energy densities of a spin-restricted electron density.

The exchange and correlation parts are energies per electron as functions of the local density
variables; `lda`, `pbe` and `blyp` are the energies per volume of their sums.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kineticnet_jax.functionals.kinetic import C_F
from kineticnet_jax.safe import SPIN_X2_OVER_S2, Local, energy_density, inverse, x_asinh_x

# Exchange of the uniform electron gas, -e_x / n^(4/3): Dirac, Proc. Camb. Philos. Soc. 26, 376
# (1930).
_C_X = 0.75 * (3 / math.pi) ** (1 / 3)

# r_s n^(1/3), from the definition of the Wigner-Seitz radius.
_RS = (3 / (4 * math.pi)) ** (1 / 3)

# Fermi wave vector k_F n^(-1/3).
_K_F = (3 * math.pi**2) ** (1 / 3)

# Vosko, Wilk and Nusair, Can. J. Phys. 58, 1200 (1980), Table 5, paramagnetic; A in Ha.
_VWN_A = 0.0310907
_VWN_B = 3.72744
_VWN_C = 12.9352
_VWN_X0 = -0.10498
_VWN_Q = math.sqrt(4 * _VWN_C - _VWN_B**2)

# Perdew and Wang, Phys. Rev. B 45, 13244 (1992), Table I, ζ = 0; A has the extra digits of the PBE
# authors' code.
_PW92_A = 0.0310907
_PW92_ALPHA1 = 0.21370
_PW92_BETA = (7.5957, 3.5876, 1.6382, 0.49294)

# Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), β with all the digits of their
# computer code.
_PBE_BETA = 0.06672455060314922
_PBE_GAMMA = (1 - math.log(2)) / math.pi**2
_PBE_MU = _PBE_BETA * math.pi**2 / 3
_PBE_KAPPA = 0.8040

# Becke, Phys. Rev. A 38, 3098 (1988), fitted to the noble gases.
_B88_BETA = 0.0042

# Colle and Salvetti, Theor. Chim. Acta 37, 329 (1975), as used by Lee, Yang and Parr.
_LYP_A = 0.04918
_LYP_B = 0.132
_LYP_C = 0.2533
_LYP_D = 0.349


def slater_exchange(p: Local) -> Float[Array, "*points"]:
    """Exchange energy per electron of the uniform electron gas.

    ε_x = -(3/4) (3/π)^(1/3) n^(1/3)

    Args:
        p: Local density variables.

    Returns:
        Exchange energy per electron, shape (points), Ha.

    Reference:
        Dirac, Proc. Camb. Philos. Soc. 26, 376 (1930).
    """
    return -_C_X * p.cbrt_n


@jax.custom_jvp
def _vwn(x: Float[Array, "..."]) -> Float[Array, "..."]:
    # Each logarithm has an argument that tends to one at low density.
    inv_polynomial = inverse(x * x + _VWN_B * x + _VWN_C)
    angle = (2 / _VWN_Q) * jnp.arctan(_VWN_Q / (2 * x + _VWN_B))
    log_x = jnp.log1p(-(_VWN_B * x + _VWN_C) * inv_polynomial)
    slope0 = 2 * _VWN_X0 + _VWN_B
    log_x0 = jnp.log1p(-(slope0 * x + (_VWN_C - _VWN_X0**2)) * inv_polynomial)
    weight = _VWN_B * _VWN_X0 / (_VWN_X0**2 + _VWN_B * _VWN_X0 + _VWN_C)
    return _VWN_A * (log_x + _VWN_B * angle - weight * (log_x0 + slope0 * angle))


@_vwn.defjvp
def _vwn_jvp(
    primals: tuple[Float[Array, "..."]], tangents: tuple[Float[Array, "..."]]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    # The terms of the energy cancel to third order in 1/x when differentiated one by one.
    x = primals[0]
    inv_polynomial = inverse(x * x + _VWN_B * x + _VWN_C)
    numerator = (_VWN_C - _VWN_B * _VWN_X0) - _VWN_C * _VWN_X0 * inverse(x)
    slope = 2 * _VWN_A * numerator * inverse(x - _VWN_X0) * inv_polynomial
    return _vwn(x), slope * tangents[0]


def vwn_correlation(p: Local) -> Float[Array, "*points"]:
    """Correlation energy per electron of the uniform electron gas after Vosko, Wilk and Nusair.

    ε_c = A {ln(x^2/X) + (2b/Q) atan(Q/(2x+b))
             - (b x0/X(x0)) [ln((x-x0)^2/X) + (2(b+2x0)/Q) atan(Q/(2x+b))]},
    x = r_s^(1/2), X(x) = x^2 + b x + c, Q = (4c - b^2)^(1/2)

    Args:
        p: Local density variables.

    Returns:
        Correlation energy per electron, shape (points), Ha.

    Reference:
        Vosko, Wilk and Nusair, Can. J. Phys. 58, 1200 (1980), Eq. (4.4), fit to the electron gas of
        Ceperley and Alder, known as VWN5.
    """
    return _vwn(jnp.sqrt(_RS * p.inv_cbrt_n))


def pw92_correlation(p: Local) -> Float[Array, "*points"]:
    """Correlation energy per electron of the uniform electron gas after Perdew and Wang.

    ε_c = -2A (1 + α1 r_s) ln[1 + 1 / (2A (β1 r_s^(1/2) + β2 r_s + β3 r_s^(3/2) + β4 r_s^2))]

    Args:
        p: Local density variables.

    Returns:
        Correlation energy per electron, shape (points), Ha.

    Reference:
        Perdew and Wang, Phys. Rev. B 45, 13244 (1992), Eq. (10).
    """
    rs = _RS * p.inv_cbrt_n
    x = jnp.sqrt(rs)
    beta1, beta2, beta3, beta4 = (2 * _PW92_A * beta for beta in _PW92_BETA)
    screening = x * (beta1 + x * (beta2 + x * (beta3 + x * beta4)))
    return -2 * _PW92_A * (1 + _PW92_ALPHA1 * rs) * jnp.log1p(inverse(screening))


def pbe_exchange(p: Local) -> Float[Array, "*points"]:
    """PBE exchange energy per electron.

    ε_x = ε_x^LDA [1 + κ - κ / (1 + μ s^2 / κ)], s = |∇n| / (2 k_F n)

    Args:
        p: Local density variables.

    Returns:
        Exchange energy per electron, shape (points), Ha.

    Reference:
        Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), Eq. (14).
    """
    saturation = inverse(1 + (_PBE_MU / _PBE_KAPPA) * p.s2)
    return slater_exchange(p) * (1 + _PBE_KAPPA * (1 - saturation))


def pbe_correlation(p: Local) -> Float[Array, "*points"]:
    """PBE correlation energy per electron.

    ε_c = ε_c^PW92 + γ ln[1 + (β/γ) t^2 (1 + A t^2) / (1 + A t^2 + A^2 t^4)],
    A = (β/γ) / (exp(-ε_c^PW92/γ) - 1), t^2 = π k_F s^2 / 4

    Args:
        p: Local density variables.

    Returns:
        Correlation energy per electron, shape (points), Ha.

    Reference:
        Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), Eqs. (7) and (8).
    """
    # With z = A t^2 the two terms join to γ ln[1 + (exp(ε/γ) - 1) / (1 + z + z^2)], which does not
    # cancel at large gradients; r = 1/(1 + z) turns the factor into r^2 / (1 - r + r^2), which does
    # not overflow.
    inv_screening = jnp.expm1(pw92_correlation(p) * (-1 / _PBE_GAMMA))
    t2 = (math.pi * _K_F / 4) * p.s2 * p.cbrt_n
    r = inverse(1 + (_PBE_BETA / _PBE_GAMMA) * t2 * inverse(inv_screening))
    damping = r * r / (1 - r + r * r)
    return _PBE_GAMMA * jnp.log1p(-damping * inv_screening * inverse(1 + inv_screening))


def b88_exchange(p: Local) -> Float[Array, "*points"]:
    """Becke's 1988 exchange energy per electron.

    ε_x = ε_x^LDA - 2^(-1/3) β n^(1/3) x^2 / (1 + 6 β x asinh x), x = 2^(1/3) |∇n| / n^(4/3)

    Args:
        p: Local density variables.

    Returns:
        Exchange energy per electron, shape (points), Ha.

    Reference:
        Becke, Phys. Rev. A 38, 3098 (1988), Eq. (8).
    """
    x2 = SPIN_X2_OVER_S2 * p.s2
    gradient_term = x2 * inverse(1 + 6 * _B88_BETA * x_asinh_x(x2))
    return p.cbrt_n * (-_C_X - (2 ** (-1 / 3) * _B88_BETA) * gradient_term)


def lyp_correlation(p: Local) -> Float[Array, "*points"]:
    """Lee-Yang-Parr correlation energy per electron, integrated by parts, of a closed shell.

    ε_c = -a / (1 + d m) - a b exp(-c m) / (1 + d m) [C_F - (3 + 7δ) |∇n|^2 / (72 n^(8/3))],
    m = n^(-1/3), δ = c m + d m / (1 + d m)

    Args:
        p: Local density variables.

    Returns:
        Correlation energy per electron, shape (points), Ha.

    Reference:
        Lee, Yang and Parr, Phys. Rev. B 37, 785 (1988), Eq. (22), without second derivatives of the
        density: Miehlich, Savin, Stoll and Preuss, Chem. Phys. Lett. 157, 200 (1989).
    """
    m = p.inv_cbrt_n
    r = inverse(1 + _LYP_D * m)
    delta = _LYP_C * m + (1 - r)
    gradient_term = (_K_F**2 / 18) * (3 + 7 * delta) * p.s2
    return -_LYP_A * r * (1 + _LYP_B * jnp.exp(-_LYP_C * m) * (C_F - gradient_term))


def _lda(p: Local) -> Float[Array, "*points"]:
    return slater_exchange(p) + vwn_correlation(p)


def _pbe(p: Local) -> Float[Array, "*points"]:
    return pbe_exchange(p) + pbe_correlation(p)


def _blyp(p: Local) -> Float[Array, "*points"]:
    return b88_exchange(p) + lyp_correlation(p)


def lda(n: Float[Array, "points"], grad_n: Float[Array, "points 3"]) -> Float[Array, "points"]:
    """Local density approximation: Slater exchange with VWN5 correlation.

    e_xc = n (ε_x^LDA + ε_c^VWN)

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4; without influence.

    Returns:
        Exchange-correlation energy density, shape (points), Ha/bohr^3.

    Reference:
        Vosko, Wilk and Nusair, Can. J. Phys. 58, 1200 (1980), Eq. (4.4).
    """
    return energy_density(_lda, n, grad_n)


def pbe(n: Float[Array, "points"], grad_n: Float[Array, "points 3"]) -> Float[Array, "points"]:
    """Generalized gradient approximation of Perdew, Burke and Ernzerhof.

    e_xc = n (ε_x^PBE + ε_c^PBE)

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Exchange-correlation energy density, shape (points), Ha/bohr^3.

    Reference:
        Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), Eqs. (3) and (10).
    """
    return energy_density(_pbe, n, grad_n)


def blyp(n: Float[Array, "points"], grad_n: Float[Array, "points 3"]) -> Float[Array, "points"]:
    """Becke exchange with Lee-Yang-Parr correlation.

    e_xc = n (ε_x^B88 + ε_c^LYP)

    Args:
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Exchange-correlation energy density, shape (points), Ha/bohr^3.

    Reference:
        Becke, Phys. Rev. A 38, 3098 (1988), Eq. (8); Lee, Yang and Parr, Phys. Rev. B 37, 785
        (1988), Eq. (22).
    """
    return energy_density(_blyp, n, grad_n)


XC_FUNCTIONALS: dict[str, Callable] = {"lda": lda, "pbe": pbe, "blyp": blyp}
