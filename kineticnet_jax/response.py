"""How optimized densities answer to changes: fields, positions, parameters of the functional."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from kineticnet_jax.density import Density, SqrtDensity
from kineticnet_jax.energy import TotalEnergy, total_energy
from kineticnet_jax.functionals.base import Functional
from kineticnet_jax.optimize import density_of, variables
from kineticnet_jax.system import System

TOLERANCE = 1e-10
"""Residual of the linear response equations, relative to their right-hand side."""

MAX_ITERATIONS = 1000

Gradient = Callable[[Float[Array, "variables"]], Float[Array, "variables"]]


@partial(jax.jit, static_argnames="derivatives")
def relaxed(energy: TotalEnergy, density: SqrtDensity, derivatives: int = 1) -> SqrtDensity:
    """The density that minimises an energy, as a differentiable function of that energy.

    With ∇E(ψ, θ) = 0 at the minimum, dψ = -(∇²E)⁻¹ ∂_θ∇E dθ (implicit function theorem). Here θ is
    everything the energy is made of: external potential, parameters of the functional, and nuclear
    positions by way of `kineticnet_jax.forces.moved`. A Newton step from a fixed ψ has just this
    derivative, in forward and reverse mode, and every further step makes twice as many derivatives
    right.

    Args:
        energy: from `total_energy`; what in it is traced is differentiated by.
        density: the optimized density, for the values of `energy`.
        derivatives: highest derivative that will be taken.

    Returns:
        The given density, which must be converged, after these Newton steps.
    """
    fixed = jax.lax.stop_gradient(energy.system)
    start = jax.lax.stop_gradient(variables(fixed, density))

    x = start
    for _ in range(derivatives.bit_length()):
        value, hessian = jax.linearize(_slope(energy, start), x)
        x = x - _solve(hessian, value)
    return density_of(fixed, x)


def _slope(energy: TotalEnergy, start: Float[Array, "variables"]) -> Gradient:
    """The gradient by the variables, as a function of them near an optimized density."""

    def slope(x: Float[Array, "variables"]) -> Float[Array, "variables"]:
        gradient = jax.grad(lambda x: energy(density_of(fixed, x)))(x)
        # The energy does not change with the length of x, which is therefore held.
        return gradient + start * jnp.vdot(start, x - start) / jnp.vdot(start, start)

    fixed = jax.lax.stop_gradient(energy.system)
    return slope


def _solve(
    hessian: Gradient, right_hand_side: Float[Array, "variables"]
) -> Float[Array, "variables"]:
    return cg(hessian, right_hand_side, tol=TOLERANCE, maxiter=MAX_ITERATIONS)[0]


@jax.jit
def dipole_moment(system: System, density: Density) -> Float[Array, "3"]:
    """Dipole moment Σ_A Z_A R_A - ∫ r n dr in e bohr; that of an ion depends on the origin.

    Args:
        system: from `prepare`.
        density: any density of it.
    """
    molecule = system.molecule
    nuclei = jnp.asarray(molecule.charges) @ jnp.asarray(molecule.positions)
    return nuclei - (system.grid.weights * density.on_grid(system).n) @ system.grid.points


def polarizability(
    system: System, functional: Functional | str, density: SqrtDensity, xc: str = "blyp"
) -> Float[Array, "3 3"]:
    """Derivative of the dipole moment by a uniform electric field, dμ_i/dF_j, in bohr³.

    Args:
        system: from `prepare`.
        functional: kinetic energy functional or its name.
        density: an optimized density of it.
        xc: exchange-correlation functional.

    Raises:
        InputError: for an unknown functional, or an element it cannot be used for.
    """
    return _polarizability(total_energy(system, functional, xc), density)


@jax.jit
def _polarizability(energy: TotalEnergy, density: SqrtDensity) -> Float[Array, "3 3"]:
    """D H⁻¹ Dᵀ with the dipole moment's derivative D: a field F adds -F·μ to the energy."""
    system = energy.system
    x = variables(system, density)
    _, hessian = jax.linearize(_slope(energy, x), x)
    derivatives = jax.jacrev(lambda x: dipole_moment(system, density_of(system, x)))(x)
    # One after the other, in the memory of one.
    answers = jax.lax.map(partial(_solve, hessian), derivatives)
    return derivatives @ answers.T
