"""One training step: a pure function of the state and a batch, compiled piece by piece.

A batch are groups of samples of several families. What a group contributes is compiled once for
each family, so that no family has to be padded to the size of another one.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.network import Params
from kineticnet_jax.train.curvature import CurvatureSettings, Cuts, curvature_rows
from kineticnet_jax.train.gauss_newton import (
    GaussNewtonSettings,
    Residuals,
    least_squares_step,
    residuals,
)
from kineticnet_jax.train.groups import Group, Targets, over_geometries
from kineticnet_jax.train.loss import LossWeights, Site, loss_of, prepare_geometry, sample_errors
from kineticnet_jax.train.processes import AXIS
from kineticnet_jax.types import Scalar

Batch = tuple[Group | Cuts, ...]
Method = Literal["gauss-newton", "adam"]


@dataclass(frozen=True)
class OptimizerSettings:
    """How parameters follow from errors; the rate warms up and decays with a cosine.

    Attributes:
        method: "gauss-newton" for least squares steps, or "adam".
        learning_rate: the largest one: share of a least squares step, or Adam's rate.
        warmup: steps over which it grows from zero.
        final: the last learning rate as a fraction of the largest.
        clip: norm to which steps (Adam: gradients) are cut.
        average: decay per step of the moving average of the parameters used for evaluation.
        gauss_newton: what else belongs to least squares steps.
        b2: decay of the mean square of gradients of Adam.
    """

    method: Method = "gauss-newton"
    learning_rate: float = 0.3
    warmup: int = 10
    final: float = 0.01
    clip: float = 1.0
    average: float = 0.95
    gauss_newton: GaussNewtonSettings = field(default_factory=GaussNewtonSettings)
    b2: float = 0.99

    def check(self) -> None:
        """Finds settings that make no sense.

        Raises:
            InputError: naming what to change.
        """
        if self.method not in ("gauss-newton", "adam"):
            raise unknown_name("method", self.method, ("gauss-newton", "adam"))
        if not self.learning_rate > 0 or not self.clip > 0 or self.warmup < 0:
            raise InputError("learning_rate and clip must be positive, warmup not negative")
        if not (0 <= self.average < 1 and 0 <= self.b2 < 1 and 0 <= self.final <= 1):
            raise InputError("average and b2 must be from 0 to below 1, final from 0 to 1")
        self.gauss_newton.check()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "averaged", "optimizer", "step"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """Everything that changes in training; a pytree.

    Attributes:
        params: parameters of the network.
        averaged: their moving average, for evaluation.
        optimizer: state of the optimizer, with the last least squares step under "last".
        step: number of steps done; batches and random numbers follow from it.
    """

    params: Params
    averaged: Params
    optimizer: Any
    step: Any


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Clipping, Adam if that is the method, and the learning rate over a number of steps."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        settings.warmup,
        max(steps, settings.warmup + 1),
        settings.learning_rate * settings.final,
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.scale_by_adam(b2=settings.b2) if settings.method == "adam" else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )


def initial_state(
    settings: OptimizerSettings, optimizer: optax.GradientTransformation, params: Params
) -> TrainState:
    """The state before the first step."""
    memory = {"optax": optimizer.init(params)}
    if settings.method == "gauss-newton":
        memory["last"] = jax.tree.map(jnp.zeros_like, params)
    return TrainState(params, params, memory, jnp.zeros((), jnp.int32))


def make_step(
    template: LearnedFunctional,
    settings: OptimizerSettings,
    optimizer: optax.GradientTransformation,
    weights: LossWeights,
    seed: int = 0,
    mesh: Mesh | None = None,
    dtype: np.typing.DTypeLike = np.float32,
    at_a_time: int = 1,
    curvature: CurvatureSettings | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Scalar]]]:
    """The step as a function of state and batch.

    Args:
        template: the functional; its parameters are replaced by those of the state.
        settings: how parameters follow from errors.
        optimizer: from `make_optimizer`.
        weights: of the losses.
        seed: of random directions.
        mesh: devices over which the geometries of a group are spread, one axis "geometries"; their
            number must divide that of the geometries. Then the state is replicated on them.
        dtype: precision of the functional; labels are made in float64.
        at_a_time: samples of a geometry that are processed together: one is best for the cache of
            a processor, all of them for a GPU. Must divide their number.
        curvature: weight and goal of the curvatures in a batch, if there are any.

    Returns:
        A pure function, made of compiled ones, to the new state and the loss with its terms in
        millihartree, means over the samples. If a loss or a step is not finite, parameters stay
        as they are and the metric "finite" is zero.
    """
    raised = curvature or CurvatureSettings()
    if settings.method == "adam":
        part: Callable[..., Any] = partial(_gradients, template, weights, dtype, at_a_time)
        merge: Callable[..., Any] = _mean_gradient
    else:
        part = partial(group_residuals, template, weights, dtype, at_a_time, settings.gauss_newton)
        merge = partial(least_squares_step, settings.gauss_newton, weights, raised.weight)
    summed = settings.method == "adam"
    # Collective operations of several devices must begin in the same order everywhere.
    several = mesh is not None and mesh.size > 1
    together = _one_after_the_other if several else _in_threads

    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def on_device(params: Params, key: Array, group: Group | Cuts) -> Any:
        if isinstance(group, Cuts):
            return curvature_rows(template, raised, dtype, params, group)
        if not several:
            return part(params, key, jnp.zeros((), int), group)
        first = jax.lax.axis_index(AXIS) * len(group.positions)
        result = part(params, key, first, group)
        return jax.lax.psum(result, AXIS) if summed else result

    @jax.jit
    def contribution(params: Params, key: Array, group: Group | Cuts) -> Any:
        if not several:
            return on_device(params, key, group)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(
                PartitionSpec(),
                PartitionSpec(),
                group.map_axes(PartitionSpec(), PartitionSpec(AXIS)),
            ),
            out_specs=PartitionSpec() if summed else PartitionSpec(AXIS),
            check_vma=False,
        )(params, key, group)

    @partial(jax.jit, out_shardings=everywhere)
    def update(state: TrainState, parts: list[Any]) -> tuple[TrainState, dict[str, Scalar]]:
        metrics, slope = merge(parts, state.optimizer.get("last"))
        norm = jnp.linalg.norm(ravel_pytree(slope)[0])
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, memory = optimizer.update(slope, state.optimizer["optax"], state.params)
        params = optax.apply_updates(state.params, updates)
        # Short at first, while the parameters still move far.
        decay = jnp.minimum(settings.average, (1 + state.step) / (100 + state.step))
        averaged = jax.tree.map(
            lambda old, new: old + (1 - decay.astype(new.dtype)) * (new - old),
            state.averaged,
            params,
        )
        kept = {"optax": memory} | ({"last": slope} if "last" in state.optimizer else {})
        new = TrainState(params, averaged, kept, state.step)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new = replace(new, step=state.step + 1)
        nothing = {"curvature": jnp.zeros_like(norm)}
        return new, nothing | metrics | {"finite": finite, "step_norm": norm}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Scalar]]:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
        keys = jax.random.split(key, len(batch))
        return update(state, together(partial(contribution, state.params), keys, batch))

    return step


def _one_after_the_other(
    function: Callable[[Array, Group | Cuts], Any], keys: Array, batch: Batch
) -> list[Any]:
    return [function(key, group) for key, group in zip(keys, batch, strict=True)]


def _in_threads(
    function: Callable[[Array, Group | Cuts], Any], keys: Array, batch: Batch
) -> list[Any]:
    """At once, as compiling the programs of several groups takes minutes, on one core each.

    The largest begin, so that the last ones to end are short.
    """

    def in_thread(number: int) -> Any:
        with jax.enable_x64(True):
            return function(keys[number], batch[number])

    sizes = [sum(np.size(leaf) for leaf in jax.tree.leaves(group)) for group in batch]
    order = np.argsort(sizes)[::-1].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = dict(zip(order, threads.map(in_thread, order), strict=True))
    return [results[number] for number in range(len(batch))]


def _gradients(
    template: LearnedFunctional,
    weights: LossWeights,
    dtype: np.typing.DTypeLike,
    at_a_time: int,
    params: Params,
    _key: Array,
    _first: Array,
    group: Group,
) -> tuple[dict[str, Scalar], Params, Int[Array, ""]]:
    """Sums of the loss, its terms and its gradient over a group, and the number of samples."""

    def loss(params: Params, site: Site, targets: Targets) -> tuple[Scalar, dict[str, Scalar]]:
        errors = sample_errors(site, params, targets, weights.potential > 0, at_a_time)
        return loss_of(errors, weights)

    def geometry(total: Any, part: Group) -> tuple[Any, None]:
        site, targets = prepare_geometry(template, part, dtype)

        def samples(total: Any, targets: Targets) -> tuple[Any, None]:
            (value, terms), slope = jax.value_and_grad(loss, has_aux=True)(params, site, targets)
            new = (terms | {"loss": value}, slope, jnp.sum(targets.real))
            return jax.tree.map(jnp.add, total, new), None

        targets = jax.tree.map(lambda x: x.reshape(-1, at_a_time, *x.shape[1:]), targets)
        return jax.lax.scan(samples, total, targets)[0], None

    sums = dict.fromkeys(("energy", "tau", "potential", "loss"), jnp.zeros((), np.dtype(dtype)))
    zero = (sums, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), int))
    return over_geometries(geometry, zero, group)[0]


def _mean_gradient(
    parts: list[tuple[dict[str, Scalar], Params, Int[Array, ""]]], _last: None
) -> tuple[dict[str, Scalar], Params]:
    metrics, slope, count = jax.tree.map(lambda *sums: sum(sums), *parts)
    scale = 1 / jnp.maximum(count, 1)
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), (metrics, slope))


def group_residuals(
    template: LearnedFunctional,
    weights: LossWeights,
    dtype: np.typing.DTypeLike,
    at_a_time: int,
    settings: GaussNewtonSettings,
    params: Params,
    key: Array,
    first: Array,
    group: Group,
) -> Residuals:
    """Residuals of all samples of a group and their derivatives.

    Args:
        template: the functional; its parameters are replaced.
        weights: of the losses.
        dtype: precision of the functional.
        at_a_time: samples of a geometry that are processed together.
        settings: number of directions of the potential.
        params: of the network.
        key: for the directions.
        first: number of the first geometry, on which the directions depend.
        group: geometries and samples.

    Returns:
        Residuals of shape (geometries, samples, …).
    """

    def geometry(number: Array, part: Group) -> tuple[Array, Residuals]:
        site, targets = prepare_geometry(template, part, dtype)
        own = jax.random.fold_in(key, number)
        return number + 1, residuals(site, params, targets, own, settings, weights, at_a_time)

    return over_geometries(geometry, first, group)[1]
