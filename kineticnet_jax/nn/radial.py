"""Radial functions of distance that resolve nuclear cusps, and smooth cutoffs.

All are finite with finite first and second derivatives at r = 0 and beyond the cutoff too, in
single and double precision.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.errors import InputError


def geometric_sequence(first: float, last: float, count: int) -> Float[np.ndarray, "count"]:
    """Numbers in geometric progression, for the parameters of a radial basis.

    x_k = first (last / first)^(k / (count - 1))

    Args:
        first: x_0, positive, in any unit.
        last: x_(count - 1), positive, in the same unit.
        count: how many, at least two.

    Returns:
        x_k, shape (count), in the unit of the ends.

    Raises:
        InputError: if an end is not positive and finite or there are fewer than two numbers.
    """
    if count < 2 or not all(0 < end < math.inf for end in (first, last)):
        raise InputError(
            "a geometric sequence needs positive ends and at least two numbers, but got "
            f"{count} from {first:g} to {last:g}"
        )
    return np.geomspace(first, last, count)


def gaussian_basis(
    r: Float[Array, "*points"], exponents: Float[Array, "count"], l: int = 0
) -> Float[Array, "*points count"]:
    """Gaussians times the power of the distance that angular momentum l calls for.

    R_kl(r) = (√α_k r)^l exp(-α_k r²)

    With even-tempered exponents, α_k in geometric progression, they describe cusp and tail with the
    same relative resolution. None exceeds one up to l = 5.

    Args:
        r: distances, shape (*points), bohr.
        exponents: α_k, positive, shape (count), bohr⁻².
        l: angular momentum of the spherical harmonic they will be multiplied with.

    Returns:
        R_kl, dimensionless, shape (*points, count).

    Reference:
        Bardo and Ruedenberg, J. Chem. Phys. 60, 918 (1974).
    """
    scaled = r[..., None] * jnp.sqrt(exponents)
    return scaled**l * gaussian_of_square(r**2, exponents)


def gaussian_of_square(
    r2: Float[Array, "*points"], exponents: Float[Array, "count"]
) -> Float[Array, "*points count"]:
    """Gaussians exp(-α_k r²) as functions of the squared distance, smooth on a nucleus.

    Args:
        r2: squared distances, shape (*points), bohr².
        exponents: α_k, positive, shape (count), bohr⁻².

    Returns:
        Values between zero and one, dimensionless, shape (*points, count).
    """
    return jnp.exp(-r2[..., None] * exponents)


def log_gaussian_basis(
    r: Float[Array, "*points"], centres: Float[Array, "count"], width: float = 0.5
) -> Float[Array, "*points count"]:
    """Gaussians of the logarithm of the distance, shells around the nucleus.

    R_k(r) = exp(-½ (ln(r / c_k) / w)²), R_k(0) = 0

    They and all their derivatives vanish at r = 0, so that their products with spherical harmonics
    of any l are smooth there.

    Args:
        r: distances, shape (*points), bohr.
        centres: c_k, where each is one, positive, shape (count), bohr.
        width: w, positive, dimensionless.

    Returns:
        R_k between zero and one, dimensionless, shape (*points, count).
    """
    x = r[..., None] / centres
    # Below this the value underflows, and the logarithm's derivatives overflow closer to zero.
    smallest = math.exp(-width * math.sqrt(-2 * math.log(jnp.finfo(x.dtype).tiny)))
    positive = x > smallest
    logarithm = jnp.log(jnp.where(positive, x, 1.0))
    return jnp.where(positive, jnp.exp(-0.5 * (logarithm / width) ** 2), 0.0)


def polynomial_cutoff(
    r: Float[Array, "*points"], cutoff: float, order: int = 6
) -> Float[Array, "*points"]:
    """Polynomial that falls from one to zero with two continuous derivatives at the cutoff.

    u(x) = 1 - ½(p+1)(p+2) x^p + p(p+2) x^(p+1) - ½p(p+1) x^(p+2)
         = (1 - x)³ Σ_k<p ½(k+1)(k+2) x^k,  x = r / cutoff < 1

    With r² and cutoff² in place of r and cutoff, and order 3, it is a smooth function of the
    squared distance, and so of the position, that needs no square root.

    Args:
        r: distances, shape (*points), bohr; or squared distances, bohr².
        cutoff: where it reaches zero, positive, in the unit of r.
        order: p, at least two; the larger, the later it falls.

    Returns:
        u between zero and one, dimensionless, shape (*points).

    Reference:
        Gasteiger, Groß and Günnemann, Directional Message Passing for Molecular Graphs, ICLR 2020,
        equation 8.
    """
    p = order
    x = jnp.minimum(r / cutoff, 1.0)
    tail = (p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x**2
    # The first form cancels towards the cutoff and the second towards zero.
    series = jnp.zeros_like(x)
    for k in reversed(range(p)):
        series = series * x + (k + 1) * (k + 2) / 2
    return jnp.where(x < 0.5, 1 - x**p * tail, (1 - x) ** 3 * series)


def smooth_cutoff(r: Float[Array, "*points"], cutoff: float) -> Float[Array, "*points"]:
    """Bump function that falls from one to zero with all derivatives continuous.

    f(x) = exp(1 - 1 / (1 - x²)) = exp(-x² / (1 - x²)),  x = r / cutoff < 1

    Args:
        r: distances, shape (*points), bohr.
        cutoff: where it reaches zero, positive, bohr.

    Returns:
        f between zero and one, dimensionless, shape (*points).
    """
    x2 = (r / cutoff) ** 2
    # exp(-999) underflows; closer to the cutoff the derivatives of the exponent would overflow.
    inside = x2 < 0.999
    x2 = jnp.where(inside, x2, 0.0)
    return jnp.where(inside, jnp.exp(-x2 / (1 - x2)), 0.0)
