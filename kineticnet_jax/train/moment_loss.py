"""Loss of a moment network: errors of samples, low curvatures, and bounds at visited densities."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.nn.moments import Moments
from kineticnet_jax.train.curvature import MILLIHARTREE_PER_UNIT
from kineticnet_jax.train.loss import MILLIHARTREE
from kineticnet_jax.train.moment_config import MomentTrainConfig
from kineticnet_jax.train.moment_curvature import Curvatures, Cut
from kineticnet_jax.train.moments import Whitening
from kineticnet_jax.train.visits import Bounds
from kineticnet_jax.types import Scalar

_Array = Array | np.ndarray
Samples = tuple[Moments, Moments, Float[_Array, "samples"], Float[_Array, "samples directions"]]
"""Whitened moments, their changes, energies and slopes."""


@dataclass(frozen=True, eq=False)
class MomentLoss:
    """Mean over the samples of a step; every sample counts less from an error of `robust` on.

    Attributes:
        config: of the training.
        whitening: of the moments.
        element: index of the element of every atom of each family.
        curvatures: of the network.
    """

    config: MomentTrainConfig
    whitening: Whitening
    element: dict[str, np.ndarray]
    curvatures: Curvatures

    def __call__(
        self,
        params: dict,
        batch: dict[str, Samples],
        cuts: dict[str, Cut],
        bounds: dict[str, Bounds],
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """The loss, and what it consists of.

        Args:
            params: that are trained.
            batch: samples of each family.
            cuts: directions of low curvature of each family that has some.
            bounds: the same for visited densities.
        """
        count = sum(len(energy) for _, _, energy, _ in batch.values())
        total, energy, potential, curvature, visited = jnp.zeros((5,))
        for name, samples in batch.items():
            errors, residuals = self.errors(name, params, samples)
            squares = jnp.sum(residuals**2, axis=1)
            sums = errors**2 + squares
            total += jnp.sum(self._robust(sums))
            energy += jnp.sum(jnp.abs(errors))
            potential += jnp.sum(squares)
        for name, found in cuts.items():
            along = partial(self.curvatures.along, params, element=self.element[name])
            missing = jax.vmap(along)(found) + found.rest - self.config.curvature.goal
            curvature += jnp.sum((MILLIHARTREE_PER_UNIT * jnp.minimum(missing, 0)) ** 2)
        for name, of_family in bounds.items():
            visited += jnp.sum(self._robust(self.missing(name, params, of_family)))
        weights = self.config.curvature.weight, self.config.visits.weight
        loss = (total + weights[0] * curvature + weights[1] * visited) / count
        terms = {
            "energy": energy,
            "potential": potential,
            "curvature": curvature,
            "visited": visited,
        }
        return loss, {"loss": loss} | {name: value / count for name, value in terms.items()}

    def _robust(self, squares: Float[Array, "samples"]) -> Float[Array, "samples"]:
        """Squares of errors in mHa, growing like the errors from `robust` on."""
        robust = self.config.robust
        return 2 * robust**2 * (jnp.sqrt(1 + squares / robust**2) - 1)

    def missing(self, family: str, params: dict, bounds: Bounds) -> Float[Array, "samples"]:
        """Squares of what is missing to bounds, and of errors at the ground states."""
        element = self.element[family]

        def energy(moments: Moments) -> Scalar:
            return self.whitening.energy(params, moments, element)

        def one(bound: Bounds) -> Scalar:
            value, slope = jax.jvp(energy, (bound.moments,), (bound.change,))
            ground, start = jax.jvp(energy, (bound.ground_moments,), (bound.ground_change,))
            known = jnp.isfinite(bound.ground_slope)
            off = jnp.where(known, start - jnp.where(known, bound.ground_slope, 0), 0)
            errors = jnp.minimum(value - bound.energy, 0) ** 2 + (ground - bound.ground_energy) ** 2
            # Half of the square of a slope by y is an energy.
            slopes = jnp.minimum(slope - bound.slope, 0) ** 2 + off**2
            return errors / MILLIHARTREE**2 + slopes / (2 * MILLIHARTREE)

        return jax.vmap(one)(bounds)

    def errors(
        self, family: str, params: dict, samples: Samples
    ) -> tuple[Float[Array, "samples"], Float[Array, "samples directions"]]:
        """Errors of energies in mHa, and of potentials, whose squares add up to one in mHa."""
        element = self.element[family]

        def sample(
            moments: Moments,
            changes: Moments,
            energy: Float[_Array, ""],
            slope: Float[_Array, "directions"],
        ) -> tuple[Scalar, Float[Array, "directions"]]:
            value, derivative = jax.value_and_grad(self.whitening.energy, argnums=1)(
                params, moments, element
            )
            along = sum(
                (
                    jnp.einsum("dakm,akm->d", change, part)
                    for change, part in zip(changes, derivative, strict=True)
                ),
                start=jnp.zeros(()),
            )
            known = jnp.all(jnp.isfinite(slope))
            residual = jnp.where(known, along - jnp.where(known, slope, 0), 0)
            return (value - energy) / MILLIHARTREE, residual / MILLIHARTREE**0.5

        return jax.vmap(sample)(*samples)
