"""Integrals as weighted sums over grid points."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kineticnet_jax.types import PerPoint, Scalar


@jax.custom_jvp
def integrate(weights: PerPoint, values: PerPoint) -> Scalar:
    """Quadrature Σ_g w_g f_g.

    In float32 the sum is compensated: of the total of 10⁴ to 10⁶ terms, only the rounding of each
    product remains, below one part in 10⁷. In float64 the plain sum is as good.

    Args:
        weights: w_g in bohr³.
        values: f_g.

    Returns:
        The integral, in the precision of the input.

    Reference: T. Ogita, S. M. Rump, S. Oishi, SIAM J. Sci. Comput. 26, 1955 (2005),
        algorithm 3.1 (TwoSum), here along a pairwise tree.
    """
    products = jnp.asarray(weights) * jnp.asarray(values)
    if products.dtype == jnp.float64:
        return jnp.sum(products)
    return _compensated_sum(products)


@integrate.defjvp
def _integrate_jvp(
    primals: tuple[PerPoint, PerPoint], tangents: tuple[PerPoint, PerPoint]
) -> tuple[Scalar, Scalar]:
    (weights, values), (dweights, dvalues) = primals, tangents
    tangent = jnp.vdot(weights, dvalues) + jnp.vdot(dweights, values)
    return integrate(weights, values), tangent


def _compensated_sum(terms: Float[Array, "points"]) -> Float[Array, ""]:
    levels = max(len(terms) - 1, 0).bit_length()
    total = jnp.pad(terms, (0, (1 << levels) - len(terms)))
    error = jnp.zeros_like(total)
    for _ in range(levels):
        a, b = jnp.split(total, 2)
        total = a + b
        shift = total - a
        rounding = (a - (total - shift)) + (b - shift)
        first, second = jnp.split(error, 2)
        error = first + second + rounding
    return (total + error)[0]
