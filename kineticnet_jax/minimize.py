"""Trust-region minimisation of a function on a sphere, as one jitted loop.

The function must not change when its argument is scaled: E(λz) = E(z), so that its gradient is
orthogonal to z. Two ways to propose a step share the same acceptance rule: Newton's method with
conjugate gradients truncated at the trust radius, and a limited-memory quasi-Newton method.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Vector = Float[Array, "variables"]
Objective = Callable[[Vector], tuple[Float[Array, ""], Any]]
"""A function, and whatever else is to be known where it is evaluated, such as its terms."""

Method = Literal["newton", "lbfgs"]

RUNNING, CONVERGED, STAGNATED, DIVERGED, NOT_A_NUMBER = range(5)

MEMORY = 12
"""Pairs kept by the quasi-Newton method."""

MAX_RADIUS = 0.5
"""Largest step, as a fraction of the length of z."""

FIRST_RADIUS = 0.25
"""First trust radius, in the same unit."""

ROUNDING = 32
"""Rounding of a value in units of the last place; smaller changes of it mean nothing."""

FLATTER = 0.9
"""To what part the slope along a step must fall where values are rounded."""

MAX_REJECTIONS = 12
"""Steps rejected in a row before the search is given up; each divides the radius by four."""

MAX_CG_STEPS = 60


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """Energy and gradient norm after every step, NaN where no step was made.

    Attributes:
        energy: shape (steps + 1,).
        gradient_norm: shape (steps + 1,).
    """

    energy: Float[Array, "*batch records"] | Float[np.ndarray, "*batch records"]
    gradient_norm: Float[Array, "*batch records"] | Float[np.ndarray, "*batch records"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """The last steps s and gradient changes y, newest last, zero where there is none yet."""

    s: Float[Array, "*batch memory variables"]
    y: Float[Array, "*batch memory variables"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Where the minimisation stands; with leading axes, a batch for `jax.vmap`.

    Attributes:
        z: the variables.
        value: the function at z; infinite before its first evaluation.
        gradient: its gradient.
        rest: what else the function says there.
        radius: trust radius as a fraction of |z|.
        pairs: memory of the quasi-Newton method.
        steps: accepted steps and rejected trials so far; -1 before the first evaluation.
        rejections: trials rejected in a row.
        met_nan: whether any trial so far was not a number.
        status: RUNNING, CONVERGED, STAGNATED, DIVERGED or NOT_A_NUMBER.
        history: values and gradient norms.
    """

    z: Float[Array, "*batch variables"]
    value: Float[Array, "*batch"]
    gradient: Float[Array, "*batch variables"]
    rest: Any
    radius: Float[Array, "*batch"]
    pairs: Pairs
    steps: Int[Array, "*batch"]
    rejections: Int[Array, "*batch"]
    met_nan: Bool[Array, "*batch"]
    status: Int[Array, "*batch"]
    history: History


def start(z: Vector, rest: Any, max_steps: int) -> State:
    """The state before the function is evaluated, which `advance` does first.

    So the function is compiled once, not for its value at the start as well.

    Args:
        z: where to start.
        rest: a tree like that of what else the function says.
        max_steps: length of the history.
    """
    empty = jnp.full(max_steps + 1, jnp.nan, dtype=z.dtype)
    infinity = jnp.full((), jnp.inf, dtype=z.dtype)
    zero = jnp.zeros((), dtype=jnp.int32)
    return State(
        z=z,
        value=infinity,
        gradient=jnp.full_like(z, jnp.inf),
        rest=rest,
        radius=jnp.full_like(infinity, FIRST_RADIUS),
        pairs=Pairs(*(jnp.zeros((MEMORY, len(z)), dtype=z.dtype) for _ in range(2))),
        steps=zero - 1,
        rejections=zero,
        met_nan=jnp.zeros((), dtype=bool),
        status=zero + RUNNING,
        history=History(empty, empty),
    )


def restart(z: Vector, state: State, pairs: Pairs | None = None) -> State:
    """Starts again somewhere else; its evaluation counts as a step, and the history goes on.

    Args:
        z: where to start.
        state: in which the search was; one step must be left in its history.
        pairs: what is remembered of a function like this one; by default nothing.
    """
    fresh = start(z, state.rest, len(state.history.energy) - 1)
    remembered = fresh.pairs if pairs is None else pairs
    return replace(fresh, pairs=remembered, steps=state.steps, history=state.history)


def advance(
    objective: Objective,
    retract: Callable[[Vector], Vector],
    state: State,
    method: Method,
    tolerance: Float[Array, ""] | float,
    floor: Float[Array, ""] | float,
    limit: Int[Array, ""] | int,
    rounding: float | None = None,
) -> State:
    """Steps until convergence, failure, or until `limit` steps have been made in all.

    Args:
        objective: the function, invariant to scaling of its argument.
        retract: scales an argument back onto the sphere.
        state: from `start` or an earlier call.
        method: "newton" or "lbfgs".
        tolerance: norm of the gradient at convergence.
        floor: a value no admissible argument can have; below it the search has diverged.
        limit: total number of steps, at most the length of the history.
        rounding: relative error of differences of the function's values; by default that of sums
            in their precision. Where decreases are not larger, slopes along the step must fall.

    Returns:
        The state after the last step; z is the best argument met.

    Reference: J. Nocedal, S. J. Wright, Numerical Optimization, 2nd ed. (Springer, 2006),
        algorithms 4.1, 7.2 and 7.4; W. W. Hager, H. Zhang, SIAM J. Optim. 16, 170 (2005), section 2
        (slopes instead of values that are rounded).
    """
    if rounding is None:
        rounding = ROUNDING * float(jnp.finfo(state.value.dtype).eps)

    def unfinished(state: State) -> Bool[Array, ""]:
        return (state.status == RUNNING) & (state.steps < limit)

    def body(state: State) -> State:
        propose = _newton_step if method == "newton" else _lbfgs_step
        step, predicted = propose(objective, state)
        # Before the first evaluation there is nothing to propose a step by.
        first = jnp.isposinf(state.value)
        step = jnp.where(first, 0, step)
        trial = jnp.where(first, state.z, retract(state.z + step))
        (value, rest), gradient = jax.value_and_grad(objective, has_aux=True)(trial)
        there = replace(state, z=trial, value=value, gradient=gradient, rest=rest)
        return _judge(state, there, step, predicted, tolerance, floor, rounding)

    state = replace(state, status=_converged(state, tolerance))
    return jax.lax.while_loop(unfinished, body, state)


def _judge(
    state: State,
    there: State,
    step: Vector,
    predicted: Float[Array, ""],
    tolerance: Float[Array, ""] | float,
    floor: Float[Array, ""] | float,
    rounding: float,
) -> State:
    """Accepts or rejects a trial, and adapts the trust radius."""
    value, gradient = there.value, there.gradient
    first = jnp.isposinf(state.value)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    diverged = finite & (value < floor)
    decrease = state.value - value
    # Once the decrease drowns in the rounding of the value, only the slope along the step tells.
    noise = rounding * jnp.maximum(1.0, jnp.abs(value))
    moved = there.z - state.z
    before, after = jnp.vdot(state.gradient, moved), jnp.vdot(gradient, moved)
    flatter = jnp.abs(after) < FLATTER * jnp.abs(before)
    in_noise = (predicted < noise) & (jnp.abs(decrease) < noise)
    ratio = jnp.where(in_noise, jnp.where(flatter, 1.0, -1.0), decrease / predicted)
    accepted = first | (finite & ~diverged & (ratio > 1e-4))

    length = jnp.linalg.norm(step) / jnp.linalg.norm(state.z)
    shrunk = jnp.where(accepted & (ratio > 0.25), state.radius, 0.25 * length)
    grown = jnp.minimum(2 * state.radius, MAX_RADIUS)
    radius = jnp.where(
        first,
        state.radius,
        jnp.where(accepted & (ratio > 0.75) & (length > 0.8 * state.radius), grown, shrunk),
    )
    remembered = _remember(state.pairs, moved, gradient - state.gradient)
    gone = replace(
        there,
        pairs=jax.tree.map(partial(jnp.where, first), state.pairs, remembered),
        rejections=jnp.zeros_like(state.rejections),
    )
    stayed = replace(state, rejections=state.rejections + 1)
    state = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), gone, stayed)
    state = replace(
        state,
        radius=radius,
        steps=state.steps + 1,
        met_nan=state.met_nan | ~finite,
    )
    exhausted = (state.rejections >= MAX_REJECTIONS) | (first & ~finite)
    failure = jnp.where(state.met_nan, NOT_A_NUMBER, STAGNATED)
    status = jnp.where(exhausted, failure, _converged(state, tolerance))
    status = jnp.where(diverged, DIVERGED, status).astype(jnp.int32)
    return _record(replace(state, status=status))


def _converged(state: State, tolerance: Float[Array, ""] | float) -> Int[Array, ""]:
    small = jnp.linalg.norm(state.gradient) < tolerance
    return jnp.where((state.status == RUNNING) & small, CONVERGED, state.status).astype(jnp.int32)


def _record(state: State) -> State:
    history = History(
        jnp.asarray(state.history.energy).at[state.steps].set(state.value),
        jnp.asarray(state.history.gradient_norm)
        .at[state.steps]
        .set(jnp.linalg.norm(state.gradient)),
    )
    return replace(state, history=history)


def _newton_step(objective: Objective, state: State) -> tuple[Vector, Float[Array, ""]]:
    """Steihaug's truncated conjugate gradients in the tangent space of the sphere.

    Returns:
        The step, and the decrease that the quadratic model predicts for it.
    """
    z, gradient = state.z, state.gradient
    _, hessian = jax.linearize(jax.grad(lambda z: objective(z)[0]), z)
    unit = z / jnp.linalg.norm(z)
    radius = state.radius * jnp.linalg.norm(z)
    norm = jnp.linalg.norm(gradient)
    target = norm * jnp.minimum(0.3, jnp.sqrt(norm))

    def project(v: Vector) -> Vector:
        return v - jnp.vdot(unit, v) * unit

    Carry = tuple[Vector, Vector, Vector, Vector, Bool[Array, ""], Int[Array, ""]]

    def unfinished(carry: Carry) -> Bool[Array, ""]:
        _, _, residual, _, done, count = carry
        return ~done & (count < MAX_CG_STEPS) & (jnp.linalg.norm(residual) > target)

    def body(carry: Carry) -> Carry:
        step, curved, residual, direction, _, count = carry
        image = project(hessian(direction))
        curvature = jnp.vdot(direction, image)
        squared = jnp.vdot(residual, residual)
        alpha = squared / curvature
        leaves = jnp.linalg.norm(step + alpha * direction) >= radius
        done = (curvature <= 0) | leaves | ~jnp.isfinite(alpha)
        alpha = jnp.where(done, _to_boundary(step, direction, radius), alpha)
        new_residual = residual + alpha * image
        beta = jnp.vdot(new_residual, new_residual) / squared
        return (
            step + alpha * direction,
            curved + alpha * image,
            new_residual,
            beta * direction - new_residual,
            done,
            count + 1,
        )

    zero = jnp.zeros_like(z)
    tangent = project(gradient)
    first = (zero, zero, tangent, -tangent, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    step, curved, *_ = jax.lax.while_loop(unfinished, body, first)
    return step, -jnp.vdot(gradient, step) - 0.5 * jnp.vdot(step, curved)


def _to_boundary(step: Vector, direction: Vector, radius: Float[Array, ""]) -> Float[Array, ""]:
    """The τ > 0 at which |step + τ direction| = radius."""
    a = jnp.vdot(direction, direction)
    b = jnp.vdot(step, direction)
    c = jnp.maximum(radius**2 - jnp.vdot(step, step), 0.0)
    return (jnp.sqrt(b**2 + a * c) - b) / a


def _lbfgs_step(objective: Objective, state: State) -> tuple[Vector, Float[Array, ""]]:
    """The two-loop recursion, cut at the trust radius.

    Returns:
        The step, and the decrease that the quadratic model predicts for it.
    """
    del objective
    s, y = state.pairs.s, state.pairs.y
    inner = jnp.einsum("ij,ij->i", s, y)
    rho = jnp.where(inner > 0, 1 / jnp.where(inner > 0, inner, 1.0), 0.0)

    def backward(q: Vector, pair: tuple) -> tuple[Vector, Float[Array, ""]]:
        s_i, y_i, rho_i = pair
        alpha = rho_i * jnp.vdot(s_i, q)
        return q - alpha * y_i, alpha

    def forward(r: Vector, pair: tuple) -> tuple[Vector, None]:
        s_i, y_i, rho_i, alpha = pair
        return r + (alpha - rho_i * jnp.vdot(y_i, r)) * s_i, None

    q, alphas = jax.lax.scan(backward, state.gradient, (s, y, rho), reverse=True)
    # Without memory: half the gradient, as the preconditioned Hessian of T_vW is near 2.
    newest = jnp.vdot(y[-1], y[-1])
    scale = jnp.where(newest > 0, inner[-1] / jnp.where(newest > 0, newest, 1.0), 0.5)
    r, _ = jax.lax.scan(forward, scale * q, (s, y, rho, alphas))
    unit = state.z / jnp.linalg.norm(state.z)
    direction = -(r - jnp.vdot(unit, r) * unit)
    radius = state.radius * jnp.linalg.norm(state.z)
    fraction = jnp.minimum(1.0, radius / jnp.linalg.norm(direction))
    slope = jnp.vdot(state.gradient, direction)
    return fraction * direction, -slope * (fraction - 0.5 * fraction**2)


def _remember(pairs: Pairs, s: Vector, y: Vector) -> Pairs:
    """Appends a pair unless the curvature along it is not positive."""
    floor = 1e-8 * jnp.linalg.norm(s) * jnp.linalg.norm(y)
    kept = jnp.vdot(s, y) > floor
    added = Pairs(jnp.roll(pairs.s, -1, 0).at[-1].set(s), jnp.roll(pairs.y, -1, 0).at[-1].set(y))
    return jax.tree.map(partial(jnp.where, kept), added, pairs)
