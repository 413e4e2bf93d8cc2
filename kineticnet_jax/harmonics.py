"""Real solid harmonics r^l Y_lm."""

from functools import cache, partial
from math import factorial, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def solid_harmonics(l: int, r: Float[Array, "*batch 3"]) -> Float[Array, "m *batch"]:
    """Real solid harmonics S_lm(r) = r^l Y_lm(r/|r|), without the Condon-Shortley phase.

    With (x + iy)^m = A_m + i B_m and Legendre-type polynomials Π_lm(z, r²),

        S_lm = N_lm Π_lm A_m (m ≥ 0),   S_l,-m = N_lm Π_lm B_m (m > 0),

    normalised to ∫ Y_lm² dΩ = 1. The order is m = -l … l, except x, y, z for l = 1 (as PySCF).

    Args:
        l: angular momentum, at least 0.
        r: Cartesian vectors in bohr.

    Returns:
        The 2l + 1 harmonics in bohr^l along the first axis.

    Reference: T. Helgaker, P. Jørgensen, J. Olsen, Molecular Electronic-Structure Theory
        (Wiley, 2000), section 6.4.
    """
    x, y, z = r[..., 0], r[..., 1], r[..., 2]
    r2 = x * x + y * y + z * z
    real, imaginary = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for _ in range(l):
        a, b = real[-1], imaginary[-1]
        real.append(x * a - y * b)
        imaginary.append(x * b + y * a)
    values = {}
    for m in range(l + 1):
        polynomial = _legendre(l, m, z, r2)
        scale = sqrt((2 * l + 1) / (4 * pi) * factorial(l - m) / factorial(l + m))
        scale *= sqrt(2.0) if m else 1.0
        values[m] = scale * polynomial * real[m]
        if m:
            values[-m] = scale * polynomial * imaginary[m]
    order = (1, -1, 0) if l == 1 else range(-l, l + 1)
    return jnp.stack([values[m] for m in order])


def _legendre(
    l: int, m: int, z: Float[Array, "*batch"], r2: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Π_lm(z, r²) by upward recursion in l from Π_mm = (2m - 1)!!."""
    previous, current = jnp.zeros_like(z), jnp.ones_like(z)
    for k in range(1, m + 1):
        current = (2 * k - 1) * current
    for k in range(m + 1, l + 1):
        previous, current = (
            current,
            ((2 * k - 1) * z * current - (k + m - 1) * r2 * previous) / (k - m),
        )
    return current


@cache
def gradient_coefficients(l: int) -> Float[np.ndarray, "m 3 lower"]:
    """D with ∇S_lm = Σ_m' D_(m,m') S_(l-1,m'), for l of at least 1.

    The gradient of a harmonic polynomial is harmonic, and of one degree less. The coefficients
    follow from values of both sides at some points.
    """
    points = np.random.default_rng(0).normal(size=(8 * l, 3))
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        lower = np.asarray(solid_harmonics(l - 1, jnp.asarray(points)))
        slopes = np.asarray(jax.vmap(jax.jacfwd(partial(solid_harmonics, l)))(jnp.asarray(points)))
    solution, *_ = np.linalg.lstsq(lower.T, slopes.reshape(len(points), -1), rcond=None)
    coefficients = solution.T.reshape(2 * l + 1, 3, 2 * l - 1)
    return np.where(np.abs(coefficients) > 1e-9, coefficients, 0.0)
