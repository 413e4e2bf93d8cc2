"""One training step: a pure jitted function of the state and a group of samples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.nn.network import Params
from kineticnet_jax.train.groups import Group, Targets, over_geometries
from kineticnet_jax.train.loss import LossWeights, Site, loss_of, prepare_geometry, sample_errors
from kineticnet_jax.types import Scalar

AXIS = "geometries"
"""Axis of the device mesh over which the geometries of a group are spread."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam with warm-up and cosine decay.

    Attributes:
        learning_rate: the largest one.
        warmup: steps over which it grows from zero.
        final: the last learning rate as a fraction of the largest.
        clip: norm to which gradients are cut.
        b2: decay of the mean square of gradients.
        average: decay per step of the moving average of the parameters used for evaluation.
    """

    learning_rate: float = 2e-3
    warmup: int = 200
    final: float = 0.01
    clip: float = 1.0
    b2: float = 0.99
    average: float = 0.999


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
        optimizer: state of the optimizer.
        step: number of steps done; batches and random numbers follow from it.
    """

    params: Params
    averaged: Params
    optimizer: Any
    step: Any


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Adam with gradient clipping, warm-up, and cosine decay over a number of steps."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        settings.warmup,
        max(steps, settings.warmup + 1),
        settings.learning_rate * settings.final,
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.clip), optax.adam(schedule, b2=settings.b2)
    )


def initial_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """The state before the first step."""
    return TrainState(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_step(
    template: LearnedFunctional,
    optimizer: optax.GradientTransformation,
    weights: LossWeights,
    average: float,
    mesh: Mesh | None = None,
    dtype: np.typing.DTypeLike = np.float32,
    at_a_time: int = 1,
) -> Callable[[TrainState, Group], tuple[TrainState, dict[str, Scalar]]]:
    """The step as a function of state and group.

    Args:
        template: the functional; its parameters are replaced by those of the state.
        optimizer: from `make_optimizer`.
        weights: of the losses.
        average: decay of the moving average of the parameters.
        mesh: devices over which the geometries of a group are spread, one axis "geometries"; their
            number must divide that of the geometries.
        dtype: precision of the functional; labels are made in float64.
        at_a_time: samples of a geometry that are processed together: one is best for the cache of
            a processor, all of them for a GPU. Must divide their number.

    Returns:
        A jitted function to the new state and the loss with its terms in millihartree. If a loss
        or gradient is not finite, parameters stay as they are and the metric "finite" is zero.
    """

    def gradients(
        params: Params, group: Group, add_up: Callable[[Any], Any] = lambda x: x
    ) -> tuple[dict[str, Scalar], Params]:
        """Loss, its terms and its gradient, one sample (or `at_a_time`) after the other."""

        def loss(params: Params, site: Site, targets: Targets) -> tuple[Scalar, dict[str, Scalar]]:
            judge = partial(sample_errors, site, params, potentials=weights.potential > 0)
            return loss_of(jax.vmap(judge)(targets), weights)

        def geometry(total: Any, part: Group) -> tuple[Any, None]:
            site, targets = prepare_geometry(template, part, dtype)

            def samples(total: Any, targets: Targets) -> tuple[Any, None]:
                (value, terms), slope = jax.value_and_grad(loss, has_aux=True)(
                    params, site, targets
                )
                new = (terms | {"loss": value}, slope, jnp.sum(targets.real))
                return jax.tree.map(jnp.add, total, new), None

            targets = jax.tree.map(lambda x: x.reshape(-1, at_a_time, *x.shape[1:]), targets)
            return jax.lax.scan(samples, total, targets)[0], None

        sums = dict.fromkeys(("energy", "tau", "potential", "loss"), jnp.zeros((), np.dtype(dtype)))
        zero = (sums, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), int))
        metrics, slope, count = add_up(over_geometries(geometry, zero, group)[0])
        scale = 1 / jnp.maximum(count, 1)
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), (metrics, slope))

    def spread(params: Params, group: Group) -> tuple[dict[str, Scalar], Params]:
        if mesh is None or mesh.size == 1:
            return gradients(params, group)
        return jax.shard_map(
            partial(gradients, add_up=partial(jax.lax.psum, axis_name=AXIS)),
            mesh=mesh,
            in_specs=(PartitionSpec(), group.map_axes(PartitionSpec(), PartitionSpec(AXIS))),
            out_specs=PartitionSpec(),
            check_vma=False,
        )(params, group)

    @jax.jit
    def step(state: TrainState, group: Group) -> tuple[TrainState, dict[str, Scalar]]:
        metrics, slope = spread(state.params, group)
        norm = jnp.linalg.norm(ravel_pytree(slope)[0])
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(slope, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # Short at first, while the parameters still move far.
        decay = jnp.minimum(average, (1 + state.step) / (100 + state.step))
        averaged = jax.tree.map(
            lambda old, new: old + (1 - decay.astype(new.dtype)) * (new - old),
            state.averaged,
            params,
        )
        new = TrainState(params, averaged, optimizer_state, state.step)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        new = replace(new, step=state.step + 1)
        metrics |= {"finite": finite, "gradient_norm": norm}
        return new, metrics

    return step
