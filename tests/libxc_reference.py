"""What the tests of semilocal functionals share: points, derivatives of ours, and libxc's."""

import ctypes
import functools

import jax
import jax.numpy as jnp
import numpy as np
from pyscf.dft import libxc

REDUCED = 2 * (3 * np.pi**2) ** (1 / 3)
"""|∇n| / (s n^(4/3)), from the definition of the reduced gradient s."""

N, S = (
    axis.ravel()
    for axis in np.meshgrid(
        10.0 ** np.linspace(-10, 4, 57),
        np.concatenate([[0.0], 10.0 ** np.arange(-10, -2), np.linspace(0.01, 50, 80)]),
        indexing="ij",
    )
)


def gradient(n, s):
    """∇n along x with the reduced gradient s."""
    return np.stack([REDUCED * n ** (4 / 3) * s, 0 * n, 0 * n], axis=-1)


@functools.cache
def differentiated(functional):
    """Function of n, ∇n giving the energy density, its gradient, and the Hessian's columns."""

    def value_and_gradient(n, grad_n):
        energy, pullback = jax.vjp(functional, n, grad_n)
        return energy, pullback(jnp.ones_like(energy))

    def columns(n, grad_n):
        def column(direction):
            tangent = (direction[0] + 0 * n, direction[1:] + 0 * grad_n)
            return jax.jvp(value_and_gradient, (n, grad_n), tangent)

        values, (_, hessian) = jax.vmap(column, out_axes=(None, 0))(jnp.eye(4)[:3])
        return *values, hessian

    return jax.jit(columns)


@functools.cache
def on_grid(functional):
    """The same at all N and S."""
    return jax.device_get(differentiated(functional)(N, gradient(N, S)))


def libxc_derivatives(code, n, s, order):
    """Energy density and derivatives in n and σ = |∇n|^2, libxc ordering, as rows."""

    def lower_thresholds(_, functionals, __):
        # By default libxc returns zeros for n below 1e-15 (GGA_C_PBE: 1e-12, GGA_C_LYP: 1e-14) and
        # replaces σ below the 8/3 power of that.
        for functional in functionals.values():
            for name, value in [("dens", 1e-200), ("sigma", 1e-120)]:
                setter = getattr(libxc._itrf, f"xc_func_set_{name}_threshold")
                setter.restype = None
                setter(functional, ctypes.c_double(value))

    libxc.register_custom_functional_("lowered", code, callback=lower_thresholds)
    try:
        is_lda = libxc.xc_type("lowered") == "LDA"
        rho = n if is_lda else np.vstack([n, gradient(n, s).T])
        rows = libxc.eval_xc1("lowered", rho, deriv=order)
    finally:
        libxc.unregister_custom_functional_("lowered")
    rows[0] *= n
    if not is_lda:
        return rows
    zero = 0 * n
    return np.array([rows[0], rows[1], zero, *([rows[2], zero, zero] if order == 2 else [])])
