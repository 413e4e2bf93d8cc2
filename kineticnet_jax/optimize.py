"""Density optimization: the ground-state density of an orbital-free energy."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax import minimize
from kineticnet_jax.density import KAPPA, SqrtDensity, fit_sqrt_density, initial_density
from kineticnet_jax.energy import COMPONENTS, TotalEnergy, total_energy
from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.base import Functional
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import System
from kineticnet_jax.types import Scalar

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL = 5
"""Steps between two reports to a callback."""

NODE = 1e-6
"""Share of the electrons where ψ has the other sign, from which on this is a node; basis functions
that end too early leave less."""

UNFAMILIAR = 1.5
"""Distance from the training densities from which on there is a warning, see `Domain.distances`."""

ROUNDING = 1e-11
"""Relative error of differences of energies in float64: what cancels in the large linear terms of a
network scatters the energies of HF and H2O by 2.5e-11 hartree, those of tf+vw by 4e-14."""

COARSE_TOLERANCE = 1e-3
"""Gradient norm at which the search on a coarser system ends."""

MAX_RESTARTS = 3
"""Starts from |ψ|, if ψ has a node; a basis may not do without."""


@dataclass(frozen=True)
class Solution:
    """The result of a density optimization.

    Attributes:
        energy: total energy in hartree.
        density: the density with the lowest energy met since the last start, its coefficients
            normalised.
        converged: whether the gradient norm is below the tolerance.
        reason: why the optimization stopped, in one sentence, and whether the density is unlike
            those a learned functional was trained on.
        components: terms of the energy in hartree: kinetic, hartree, xc, external, nuclear.
        gradient_norm: |(T + κS)^(-1/2) dE/dc| in hartree^½ for normalised coefficients; half its
            square is about the distance to the minimum in hartree.
        steps: steps made, rejected trials and starts from |ψ| included.
        history: energy and gradient norm after every step, the start first.
    """

    energy: float
    density: SqrtDensity
    converged: bool
    reason: str
    components: dict[str, float]
    gradient_norm: float
    steps: int
    history: minimize.History


@dataclass(frozen=True)
class Progress:
    """What a callback of `optimize_density` is told.

    Attributes:
        steps: steps made so far.
        energy: total energy in hartree.
        gradient_norm: as in `Solution`.
    """

    steps: int
    energy: float
    gradient_norm: float


def optimize_density(
    system: System,
    functional: Functional | str,
    xc: str = "blyp",
    guess: str | SqrtDensity = "sad",
    *,
    method: minimize.Method = "lbfgs",
    tolerance: float | None = None,
    max_steps: int = 200,
    seed: int = 0,
    hartree: bool = True,
    callback: Callable[[Progress], object] | None = None,
    coarse: System | None = None,
) -> Solution:
    """Minimises the orbital-free energy over the coefficients of ψ = √n.

    The number of electrons is exact by construction. The variables are z = (T + κS)^½ c, in which
    the kinetic energy is well conditioned; both methods share one trust region, which bounds every
    step. The whole search is one jitted loop on the device.

    √n has no node. A ψ that changes its sign where there are electrons can be a local minimum, an
    excited state of the exact functional, and a learned functional does not know such densities.
    So if ψ has a node at convergence, the search starts again from the fit to |ψ|.

    Args:
        system: from `prepare`.
        functional: kinetic energy functional or its name.
        xc: exchange-correlation functional: "lda", "pbe", "blyp" or "none".
        guess: name of a starting guess ("sad", "minao", "hcore", "random") or a density.
        method: "lbfgs" (limited-memory quasi-Newton) or "newton" (truncated Newton: a third of the
            steps, each with several Hessian-vector products).
        tolerance: gradient norm at convergence; by default 1e-6 in float64, 1e-3 in float32, 1e-4
            if only what is on the grid is float32.
        max_steps: largest number of steps.
        seed: of the random guess.
        hartree: False for electrons that do not interact.
        callback: called after every few steps, with the host in between; a true answer ends the
            optimization.
        coarse: the same molecule on a coarser grid or in float32, on which the search begins: it
            goes on with `system` from a gradient norm of 1e-3. The result is that without it, in
            less time if most of it is spent on the grid; all steps are in the history.

    Returns:
        The solution. Failure to converge is no exception: see `converged` and `reason`.

    Raises:
        InputError: for an unknown functional, guess or method, or a tolerance or step limit that
            is not positive, or if `coarse` has other functions.
    """
    if tolerance is None:
        tolerance = _default_tolerance(system)
    check_limits(method, tolerance, max_steps)
    if coarse is not None:
        _check_same_functions(system, coarse)
    energy = total_energy(system, functional, xc, hartree)
    search = partial(_search, method=method, callback=callback)
    first = system if coarse is None else coarse
    density = guess if isinstance(guess, SqrtDensity) else initial_density(first, guess, seed)
    state = _start(first, density, max_steps)
    asked = False
    if coarse is not None:
        roughly = total_energy(coarse, functional, xc, hartree)
        begun, asked = search(roughly, state, max(COARSE_TOLERANCE, tolerance), max_steps - 1)
        failed = int(begun.status) in (minimize.DIVERGED, minimize.NOT_A_NUMBER)
        origin = state if failed else begun
        state = minimize.restart(origin.z, begun, origin.pairs)
    # Where it was asked to stop, the energy is still to be evaluated once.
    last = int(state.steps) + 1 if asked else max_steps
    restarts = 0
    while True:
        state, now_asked = search(energy, state, tolerance, last)
        asked |= now_asked
        if (
            asked
            or int(state.steps) >= max_steps
            or int(state.status) != minimize.CONVERGED
            or restarts == MAX_RESTARTS
            or node_share(system, density_of(system, state.z)) < NODE
        ):
            return _solution(energy, state, tolerance, restarts, asked)
        state = _restart(system, state)
        restarts += 1


def _search(
    energy: TotalEnergy,
    state: minimize.State,
    tolerance: float,
    last: int,
    method: minimize.Method,
    callback: Callable[[Progress], object] | None,
) -> tuple[minimize.State, bool]:
    """Steps up to the last one, and whether the callback asked to stop."""
    floor = _energy_floor(energy.system)
    interval = last + 1 if callback is None else PROGRESS_INTERVAL
    while True:
        limit = min(int(state.steps) + interval, last)
        state = _advance(energy, state, method, tolerance, floor, limit)
        if callback is not None:
            norm = float(jnp.linalg.norm(state.gradient))
            if callback(Progress(int(state.steps), float(state.value), norm)):
                return state, True
        if int(state.status) != minimize.RUNNING or int(state.steps) >= last:
            return state, False


def _check_same_functions(system: System, coarse: System) -> None:
    """Checks that coefficients mean the same in both systems.

    Raises:
        InputError: if they do not.
    """

    def functions(one: System) -> tuple[Any, ...]:
        places = (np.asarray(array).tolist() for array in jax.tree.leaves(one.molecule))
        return (one.n_electrons, one.density_basis.name, one.total_dtype, *places)

    if functions(coarse) != functions(system):
        raise InputError(
            "coarse is not the same molecule with the same density_basis: prepare it with another "
            "grid_level or dtype only (float32 where float64 is on in JAX)"
        )


def _default_tolerance(system: System) -> float:
    """What rounding allows on a grid of 10⁵ points, with some distance."""
    if system.dtype == np.float64:
        return 1e-6
    return 1e-4 if system.total_dtype == np.float64 else 1e-3


def check_limits(method: str, tolerance: float, max_steps: int) -> None:
    """Checks the arguments of these names of `optimize_density`.

    Raises:
        InputError: for an unknown method, or a tolerance or step limit that is not positive.
    """
    if method not in get_args(minimize.Method):
        raise unknown_name("method", method, get_args(minimize.Method))
    if max_steps < 1:
        raise InputError(f"max_steps must be at least 1, but is {max_steps}")
    if not tolerance > 0:
        raise InputError(f"tolerance must be positive, but is {tolerance:g}")


@jax.jit
def node_share(system: System, density: SqrtDensity) -> Scalar:
    """Share of the electrons where ψ has the sign that fewer of them have; 0 without a node."""
    psi, _ = density.amplitude(system)
    weights = system.grid.weights
    signed = integrate(weights, psi * jnp.abs(psi)) / integrate(weights, psi**2)
    return (1 - jnp.abs(signed)) / 2


def scaled_basis(system: System) -> Float[Array, "functions variables"]:
    """Matrix from the variables z of the optimization to coefficients, c = U (t + κ)^(-½) z."""
    basis = system.density_basis
    return basis.transform / jnp.sqrt(basis.kinetic_eigenvalues + KAPPA)


def _objective(
    energy: TotalEnergy, z: Float[Array, "variables"]
) -> tuple[Scalar, dict[str, Scalar]]:
    """The energy, and its terms."""
    components = energy.components(density_of(energy.system, z))
    return sum(components.values(), start=jnp.zeros((), energy.system.total_dtype)), components


def retract(system: System, z: Float[Array, "variables"]) -> Float[Array, "variables"]:
    """Scales z to N electrons: N = cᵀSc = Σ z² / (t + κ)."""
    electrons = jnp.sum(z**2 / (system.density_basis.kinetic_eigenvalues + KAPPA))
    return z * jnp.sqrt(system.n_electrons / electrons)


@partial(jax.jit, static_argnames="max_steps")
def _start(system: System, density: SqrtDensity, max_steps: int) -> minimize.State:
    components = {name: jnp.full((), jnp.nan, system.total_dtype) for name in COMPONENTS}
    return minimize.start(variables(system, density), components, max_steps)


@jax.jit
def _restart(system: System, state: minimize.State) -> minimize.State:
    """Goes on from the fit to |ψ|."""
    density = fit_sqrt_density(system, density_of(system, state.z))
    return minimize.restart(variables(system, density), state)


def variables(system: System, density: SqrtDensity) -> Float[Array, "variables"]:
    """The variables z of a density; the inverse of `density_of` but for the normalisation."""
    basis = system.density_basis
    coefficients = jnp.asarray(density.coefficients, system.total_dtype)
    orthonormal = basis.transform.T @ (basis.overlap @ coefficients)
    return retract(system, orthonormal * jnp.sqrt(basis.kinetic_eigenvalues + KAPPA))


def density_of(system: System, z: Float[Array, "variables"]) -> SqrtDensity:
    """The density of variables z."""
    return SqrtDensity(scaled_basis(system) @ z)


@partial(jax.jit, static_argnames="method")
def _advance(
    energy: TotalEnergy,
    state: minimize.State,
    method: minimize.Method,
    tolerance: Float[Array, ""] | float,
    floor: Float[Array, ""] | float,
    limit: Int[Array, ""] | int,
) -> minimize.State:
    system = energy.system
    objective, onto = partial(_objective, energy), partial(retract, system)
    rounding = None
    if system.total_dtype == np.float64:
        # In float32, sums over the grid are in float64, and only the rounding of terms is left.
        rounding = ROUNDING if system.dtype == np.float64 else float(jnp.finfo(system.dtype).eps)
    return minimize.advance(objective, onto, state, method, tolerance, floor, limit, rounding)


def _energy_floor(system: System) -> float:
    """An energy below that of any density: N electrons in the 1s shell of all nuclei united.

    Without repulsion that is E_nn - N Z²/2; a factor of two leaves room for exchange.
    """
    charge = float(np.sum(system.molecule.charges))
    return float(system.nuclear_repulsion) - system.n_electrons * charge**2


def _solution(
    energy: TotalEnergy, state: minimize.State, tolerance: float, restarts: int, asked: bool
) -> Solution:
    density = density_of(energy.system, state.z)
    status, steps = int(state.status), int(state.steps)
    norm = float(jnp.linalg.norm(state.gradient))
    history = jax.tree.map(lambda values: np.asarray(values)[: steps + 1], state.history)
    solution = Solution(
        energy=float(state.value),
        density=density,
        converged=status == minimize.CONVERGED,
        reason=_reason(status, steps, norm, tolerance, restarts, asked) + _warning(energy, density),
        components={name: float(state.rest[name]) for name in COMPONENTS},
        gradient_norm=norm,
        steps=steps,
        history=history,
    )
    logger.info("%s", solution.reason)
    return solution


def _warning(energy: TotalEnergy, density: SqrtDensity) -> str:
    """A sentence about a density that is unlike those a learned functional was trained on."""
    system, functional = energy.system, energy.functional
    if not isinstance(functional, LearnedFunctional) or functional.domain is None:
        return ""
    sampled = density.on_grid(system)
    distances = functional.domain.distances(system.molecule, system.grid, sampled)
    farthest = int(np.argmax(distances))
    if distances[farthest] < UNFAMILIAR:
        return ""
    return (
        f"; around {system.molecule.symbols[farthest]} (atom {farthest + 1}) the density is unlike "
        f"those '{functional.name}' was trained on (distance {distances[farthest]:.1f}, "
        "familiar ones are within 1): do not rely on the energy"
    )


def _reason(
    status: int, steps: int, norm: float, tolerance: float, restarts: int, asked: bool
) -> str:
    if status == minimize.CONVERGED:
        again = ", starting again from |ψ| as ψ had a node" if restarts else ""
        return (
            f"converged: gradient norm {norm:.1e} is below {tolerance:.1e} after {steps} steps"
            f"{again}"
        )
    distance = f"the gradient norm is {norm:.1e}, not below {tolerance:.1e}"
    if status == minimize.STAGNATED:
        return (
            f"stagnated after {steps} steps: no step lowers the energy and {distance}; "
            "a finer grid, another guess or a larger tolerance may help"
        )
    if status == minimize.DIVERGED:
        return (
            f"diverged after {steps} steps: the next step fell below any possible energy, so the "
            "functional is not bounded here; the density before it is kept"
        )
    if status == minimize.NOT_A_NUMBER:
        return (
            f"failed after {steps} steps: the energy or its gradient is not a number nearby; "
            "the last good density is kept"
        )
    if asked:
        return f"stopped after {steps} steps as asked: {distance}"
    return f"stopped after {steps} steps: {distance}; raise max_steps or try another guess"
