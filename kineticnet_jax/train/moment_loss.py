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
Samples = tuple[Moments, Moments, Float[_Array, "_"], Float[_Array, "_ _"]]
"""Whitened moments, their changes, energies, and slopes along these, of samples of a family."""


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
        for errors, residuals in self.errors(params, batch).values():
            squares = jnp.sum(residuals**2, axis=1)
            total += jnp.sum(self._robust(errors**2 + squares))
            energy += jnp.sum(jnp.abs(errors))
            potential += jnp.sum(squares)
        if cuts:
            for name, along in self.curvatures.along(params, cuts, self.element).items():
                missing = along + cuts[name].rest - self.config.curvature.goal
                curvature += jnp.sum((MILLIHARTREE_PER_UNIT * jnp.minimum(missing, 0)) ** 2)
        if bounds:
            for of_family in self.missing(params, bounds).values():
                visited += jnp.sum(self._robust(of_family))
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

    def missing(self, params: dict, bounds: dict[str, Bounds]) -> dict[str, Float[Array, "_"]]:
        """Squares of what is missing to bounds, and of errors at the ground states."""
        energies = partial(self.whitening.energies, params, element=self.element)
        ways: list[tuple[dict[str, Moments], dict[str, Moments]]] = [
            (
                {name: of_family.moments for name, of_family in bounds.items()},
                {name: of_family.change for name, of_family in bounds.items()},
            ),
            (
                {name: of_family.ground_moments for name, of_family in bounds.items()},
                {name: of_family.ground_change for name, of_family in bounds.items()},
            ),
        ]
        (values, slopes), (grounds, starts) = (
            jax.jvp(energies, (moments,), (change,)) for moments, change in ways
        )

        def squares(name: str, bound: Bounds) -> Float[Array, "samples"]:
            known = jnp.isfinite(bound.ground_slope)
            off = jnp.where(known, starts[name] - jnp.where(known, bound.ground_slope, 0), 0)
            below = jnp.minimum(values[name] - bound.energy, 0)
            errors = below**2 + (grounds[name] - bound.ground_energy) ** 2
            # Half of the square of a slope by y is an energy.
            down = jnp.minimum(slopes[name] - bound.slope, 0) ** 2 + off**2
            return errors / MILLIHARTREE**2 + down / (2 * MILLIHARTREE)

        return {name: squares(name, bound) for name, bound in bounds.items()}

    def errors(
        self, params: dict, batch: dict[str, Samples]
    ) -> dict[str, tuple[Float[Array, "_"], Float[Array, "_ _"]]]:
        """Errors of energies in mHa, and of potentials, whose squares add up to one in mHa."""
        energies = partial(self.whitening.energies, params, element=self.element)
        values, transposed = jax.vjp(
            energies, {name: moments for name, (moments, *_) in batch.items()}
        )
        (derivatives,) = transposed(jax.tree.map(jnp.ones_like, values))
        found = {}
        for name, (_, changes, energy, slope) in batch.items():
            along = sum(
                (
                    jnp.einsum("sdakm,sakm->sd", change, part)
                    for change, part in zip(changes, derivatives[name], strict=True)
                ),
                start=jnp.zeros(()),
            )
            known = jnp.all(jnp.isfinite(slope), axis=1, keepdims=True)
            residuals = jnp.where(known, along - jnp.where(known, slope, 0), 0)
            found[name] = (values[name] - energy) / MILLIHARTREE, residuals / MILLIHARTREE**0.5
        return found
