"""The Boys function of Gaussian Coulomb potentials."""

from functools import partial
from math import pi, sqrt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SWITCH = 14.0
"""Argument above which upward recursion from F_0 is stable for every order used."""

SERIES_TERMS = 70
"""Terms of the ascending series that give machine precision for arguments up to SWITCH."""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def boys(order: int, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Boys function F_m(t) = ∫_0^1 u^(2m) exp(-t u²) du, with dF_m/dt = -F_(m+1).

    Args:
        order: m, at least 0.
        t: arguments, at least 0.

    Returns:
        F_m(t), relative error near machine precision.

    Reference: T. Helgaker, P. Jørgensen, J. Olsen, Molecular Electronic-Structure Theory
        (Wiley, 2000), equations 9.8.11 to 9.8.14.
    """
    small = jnp.minimum(t, SWITCH)
    large = jnp.maximum(t, SWITCH)
    return jnp.where(t < SWITCH, _series(order, small), _upward(order, large))


@boys.defjvp
def _boys_jvp(
    order: int, primals: tuple[Float[Array, "..."]], tangents: tuple[Float[Array, "..."]]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    (t,), (dt,) = primals, tangents
    return boys(order, t), -boys(order + 1, t) * dt


def _series(order: int, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """F_m = e^(-t) Σ_i (2t)^i / [(2m+1)(2m+3)…(2m+2i+1)], all terms positive, by Horner's rule."""

    def add(i: Int[Array, ""], total: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 + t * (2 / (2 * order + 2 * (SERIES_TERMS - i) + 1)) * total

    total = jax.lax.fori_loop(0, SERIES_TERMS, add, jnp.ones_like(t))
    return jnp.exp(-t) * total / (2 * order + 1)


def _upward(order: int, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """F_(m+1) = [(2m+1) F_m - e^(-t)] / 2t from F_0 = ½ √(π/t) erf √t."""
    root = jnp.sqrt(t)
    value = 0.5 * sqrt(pi) / root * jax.lax.erf(root)
    decay = jnp.exp(-t)
    for m in range(order):
        value = ((2 * m + 1) * value - decay) / (2 * t)
    return value
