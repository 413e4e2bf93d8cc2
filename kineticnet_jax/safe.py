"""Primitives whose values and derivatives stay finite where a density vanishes.

A semilocal energy density is n f, with the energy per electron f a function of the variables of
`Local`. Its derivatives are taken with respect to log n and s^2 rather than n and |∇n|^2 and are
divided by n once, at the end. Every intermediate number is then about as large as a result, which
lets float32 reach densities of 1e-30, where n^(-5/3) and |∇n|^2 are not representable.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Taylor coefficients of cosh(sqrt z) = sum_k z^k / (2k)!; the first one left out is 4e-19.
_COSH_SQRT_SERIES = tuple(1 / math.factorial(2 * k) for k in range(10))

# Taylor coefficients of asinh(sqrt z) / sqrt z = sum_k (-1/4)^k binom(2k, k) z^k / (2k + 1).
_ASINH_SQRT_SERIES = tuple((-0.25) ** k * math.comb(2 * k, k) / (2 * k + 1) for k in range(14))

# Below this z the series is used: there the closed form loses digits in its second derivative as
# eps / z^2, while the 14 terms are exact to 1e-17.
_ASINH_SQRT_SWITCH = 1 / 16

# s^2 n^(8/3) / |∇n|^2, from s = |∇n| / (2 (3π^2)^(1/3) n^(4/3)).
_S2 = 1 / (4 * (3 * math.pi**2) ** (2 / 3))

# The largest second derivative, that of GGA exchange with respect to ∇n, is 0.01 n^(-4/3). It is
# representable down to 0.07 finfo.max^(-3/4), which is 9e-31 in float32 and 5e-233 in float64.
_VACUUM_PREFACTOR = 0.07
_VACUUM_EXPONENT = -0.75

# x^2 / s^2 for x = |∇n_σ| / n_σ^(4/3), the reduced gradient of one spin of a closed shell, where
# n_σ = n/2.
SPIN_X2_OVER_S2 = 4 * (6 * math.pi**2) ** (2 / 3)


class Local(NamedTuple):
    """Local density variables on which an energy per electron depends.

    Attributes:
        cbrt_n: n^(1/3), shape (points), bohr^-1.
        inv_cbrt_n: n^(-1/3), shape (points), bohr.
        s2: Square of the reduced gradient s = |∇n| / (2 (3π^2)^(1/3) n^(4/3)), shape (points).
    """

    cbrt_n: Float[Array, "*points"]
    inv_cbrt_n: Float[Array, "*points"]
    s2: Float[Array, "*points"]


Field = Float[Array, "..."]
Fields = tuple[Field, ...]

PerElectron = Callable[[Local], Float[Array, "*points"]]

LocalFunction = Callable[[Local], Any]
"""A function of the local variables that returns one field or a pytree of them."""


@jax.custom_jvp
def inverse(x: Float[Array, "*points"]) -> Float[Array, "*points"]:
    """Reciprocal of a large number, differentiated without forming its square.

    d(1/x) = -(1/x) (dx/x)

    Args:
        x: Denominator, non-zero, any shape.

    Returns:
        1/x, shape of x.
    """
    return 1 / x


@inverse.defjvp
def _inverse_jvp(primals: Fields, tangents: Fields) -> tuple[Field, Field]:
    r = inverse(primals[0])
    return r, -r * (r * tangents[0])


def _horner(z: Field, coefficients: tuple[float, ...]) -> Field:
    total = jnp.full_like(z, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total


def sech_sqrt(z: Float[Array, "*points"]) -> Float[Array, "*points"]:
    """Hyperbolic secant of a square root, smooth at zero and 0 at infinity.

    h(z) = 1 / cosh(sqrt z)

    Args:
        z: Non-negative argument, any shape.

    Returns:
        h(z), shape of z.
    """
    small = z < 1
    series = inverse(_horner(jnp.where(small, z, 0), _COSH_SQRT_SERIES))
    t = jnp.exp(-jnp.sqrt(jnp.where(small, 1, z)))
    return jnp.where(small, series, 2 * t / (1 + t * t))


def x_asinh_x(z: Float[Array, "*points"]) -> Float[Array, "*points"]:
    """Product x asinh(x) as a smooth function of z = x^2.

    p(z) = sqrt(z) asinh(sqrt z)

    Args:
        z: Non-negative argument, any shape.

    Returns:
        p(z), shape of z.
    """
    small = z < _ASINH_SQRT_SWITCH
    z_small = jnp.where(small, z, 0)
    z_large = jnp.where(small, 1, z)
    x = jnp.sqrt(z_large)
    closed = x * jnp.log(x + jnp.sqrt(1 + z_large))
    return jnp.where(small, z_small * _horner(z_small, _ASINH_SQRT_SERIES), closed)


def _inverse_cube_root(n: Field) -> Field:
    # Faster on CPUs than cbrt; one Newton step takes back the rounding of log n.
    r = jnp.exp(jnp.log(n) * (-1 / 3))
    return r * (4 - n * r * r * r) * (1 / 3)


def _reduced_gradient(n: Field, grad_n: Field) -> Field:
    """Vector x = ∇n n^(-4/3), with the components of ∇n along the first axis, here and below."""
    # In this order no factor overflows, as n^(-4/3) would.
    r = _inverse_cube_root(n)
    return grad_n * (r * r * r) * r


def _derivatives(f: LocalFunction) -> LocalFunction:
    """Fields f with their derivatives in log n at fixed ∇n and in s^2 at fixed n."""

    def fields(p: Local) -> Any:
        along_log_n = Local(p.cbrt_n / 3, -p.inv_cbrt_n / 3, -(8 / 3) * p.s2)
        value, d_log_n = jax.jvp(f, (p,), (along_log_n,))
        d_s2 = jax.jvp(lambda s2: f(p._replace(s2=s2)), (p.s2,), (jnp.ones_like(p.s2),))[1]
        return value, d_log_n, d_s2

    return fields


def _gradient(f: PerElectron) -> LocalFunction:
    """Field f with v = d(n f)/dn and with h of d(n f)/d∇n = h ∇n/n."""

    def fields(p: Local) -> Any:
        value, d_log_n, d_s2 = _derivatives(f)(p)
        return value, value + d_log_n, (2 * _S2) * p.inv_cbrt_n * p.inv_cbrt_n * d_s2

    return fields


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate(f: LocalFunction, n: Field, grad_n: Field) -> Any:
    """Fields f at the local variables.

    df = (df/dlog n) dn/n + 2 (df/dx^2) n^(-4/3) x·d∇n
    """
    inv_cbrt_n = _inverse_cube_root(n)
    s2 = _S2 * jnp.sum(_reduced_gradient(n, grad_n) ** 2, axis=0)
    return f(Local(n * inv_cbrt_n * inv_cbrt_n, inv_cbrt_n, s2))


@_evaluate.defjvp
def _evaluate_jvp(f: LocalFunction, primals: Fields, tangents: Fields) -> tuple[Any, Any]:
    n_dot, grad_n_dot = tangents
    r = _inverse_cube_root(primals[0])
    inv_n = r * r * r
    along_x = jnp.sum(_reduced_gradient(*primals) * grad_n_dot, axis=0)
    value, d_log_n, d_s2 = _evaluate(_derivatives(f), *primals)

    def tangent(d_log_n: Field, d_s2: Field) -> Field:
        # The factors of the tangents go first: a tangent may be as small as n.
        return (d_log_n * inv_n) * n_dot + ((2 * _S2) * d_s2 * r * inv_n) * along_x

    return value, jax.tree.map(tangent, d_log_n, d_s2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _density_and_gradient(f: PerElectron, n: Field, grad_n: Field) -> Fields:
    """Energy per volume n f with its derivatives v in n and h ∇n/n in ∇n.

    The product h ∇n/n has a rule of its own because the derivatives of h alone may overflow:
    d(h ∇n/n) = [(dh/dlog n - h) ∇n/n dn + h d∇n + 2 (dh/dx^2) x x·d∇n] / n
    """
    value, v, h = _evaluate(_gradient(f), n, grad_n)
    r = _inverse_cube_root(n)
    return n * value, v, h * (grad_n * (r * r * r))


@_density_and_gradient.defjvp
def _density_and_gradient_jvp(
    f: PerElectron, primals: Fields, tangents: Fields
) -> tuple[Fields, Fields]:
    n, grad_n = primals
    n_dot, grad_n_dot = tangents
    r = _inverse_cube_root(n)
    inv_n = r * r * r
    slope, x = grad_n * inv_n, _reduced_gradient(n, grad_n)
    (value, v, h), d_log_n, d_s2 = _evaluate(_derivatives(_gradient(f)), n, grad_n)
    d_grad_n = h * slope
    density_dot = v * n_dot + jnp.sum(d_grad_n * grad_n_dot, axis=0)
    along_x = jnp.sum(x * grad_n_dot, axis=0)
    v_dot = (d_log_n[1] * inv_n) * n_dot + ((2 * _S2) * d_s2[1] * r * inv_n) * along_x
    # The length of x goes from x x·d∇n to the derivative in x^2, which falls off against it.
    length2 = jnp.sum(x * x, axis=0) + float(jnp.finfo(n.dtype).eps) ** 2
    inv_length = jax.lax.rsqrt(length2)
    d_x2 = ((2 * _S2) * d_s2[2] * length2 * inv_n) * (along_x * inv_length) * inv_length
    d_grad_n_dot = (
        (((d_log_n[2] - h) * inv_n) * n_dot) * slope + (h * inv_n) * grad_n_dot + d_x2 * x
    )
    return (n * value, v, d_grad_n), (density_dot, v_dot, d_grad_n_dot)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _density(f: PerElectron, n: Field, grad_n: Field) -> Field:
    return n * _evaluate(f, n, grad_n)


@_density.defjvp
def _density_jvp(f: PerElectron, primals: Fields, tangents: Fields) -> tuple[Field, Field]:
    n_dot, grad_n_dot = tangents
    density, v, d_grad_n = _density_and_gradient(f, *primals)
    return density, v * n_dot + jnp.sum(d_grad_n * grad_n_dot, axis=0)


def energy_density(
    per_electron: PerElectron, n: Float[Array, "*points"], grad_n: Float[Array, "*points 3"]
) -> Float[Array, "*points"]:
    """Energy per volume of a semilocal functional, zero where there is no density.

    e = n f(n^(1/3), s^2)

    Args:
        per_electron: Energy per electron f as a function of the local variables, Ha.
        n: Electron density, shape (points), bohr^-3.
        grad_n: Density gradient, shape (points, 3), bohr^-4.

    Returns:
        Energy density e, shape (points), Ha/bohr^3.
    """
    largest = float(jnp.finfo(jnp.result_type(n)).max)
    vacuum = n < _VACUUM_PREFACTOR * largest**_VACUUM_EXPONENT
    n = jnp.where(vacuum, 1, n)
    grad_n = jnp.where(vacuum, 0, jnp.moveaxis(grad_n, -1, 0))
    return jnp.where(vacuum, 0, _density(per_electron, n, grad_n))


@jax.custom_jvp
def ratio(a: Float[Array, "*batch"], b: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Quotient of an energy and its upper bound, zero where both vanish.

    d(a/b) = da/b - (a/b) db/b, without 1/b^2, which may overflow.

    Args:
        a: Numerator, any shape.
        b: Denominator, not negative, shape of a.

    Returns:
        a/b, shape of a; zero where b is below the square root of the least normal number.
    """
    positive = b > float(jnp.finfo(b.dtype).tiny) ** 0.5
    return jnp.where(positive, a / jnp.where(positive, b, 1.0), 0.0)


@ratio.defjvp
def _ratio_jvp(primals: Fields, tangents: Fields) -> tuple[Field, Field]:
    (a, b), (da, db) = primals, tangents
    value = ratio(a, b)
    return value, ratio(da, b) - value * ratio(db, b)
