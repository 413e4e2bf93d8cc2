"""Gauss-Newton steps in the space of the residuals of a batch.

The errors of a batch are written as residuals whose squares add up to the loss. With fewer
residuals than parameters the linear least squares problem of a step is solved exactly, at the price
of one backward pass for each residual. Labels are free of noise, so that steps on small batches
converge: hundreds of them do what Adam needs many thousands for.

Reference: G. Goldshlager, N. Abrahamsen, L. Lin, J. Comput. Phys. 516, 113351 (2024), algorithm 1
(SPRING), there for wave functions.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from kineticnet_jax.data.spaces import (
    expand_in_functions,
    overlaps_with_functions,
    preconditioned_changes,
)
from kineticnet_jax.density import KAPPA
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.kinetic import thomas_fermi
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.nn.network import TAIL_ENERGY, Params
from kineticnet_jax.train.curvature import CurvatureRows
from kineticnet_jax.train.groups import Targets
from kineticnet_jax.train.loss import MILLIHARTREE, LossWeights, Site, cast
from kineticnet_jax.types import PerPoint, Scalar

DEPENDENT = 1e-3
"""Singular value up to which a combination of normalized directions is none."""


@dataclass(frozen=True)
class GaussNewtonSettings:
    """How the least squares problem of a step is solved.

    Attributes:
        directions: along which the potential of every sample is compared, drawn anew in every step.
        collective: share of the samples whose directions are collective, see
            `collective_changes`, and those of the other samples orthogonal to them; with 0 all
            directions are alike. The expectation of the loss is the same.
        kappa: κ in hartree, see `preconditioned_changes`.
        robust: error of an energy in mHa, and square root of one of a potential, from which on
            errors count less. A small one is for densities as most of them are, a large one for
            the few that are unlike the others.
        damping: added to the matrix of the residuals, relative to its mean diagonal, in which
            residuals without weight count as zero.
        momentum: share of the last step that is kept where the batch says nothing.
    """

    directions: int = 2
    collective: float = 0.0
    kappa: float = KAPPA
    robust: float = 10.0
    damping: float = 1e-5
    momentum: float = 0.95

    def check(self) -> None:
        """Finds settings that make no sense.

        Raises:
            InputError: naming what to change.
        """
        if self.directions < 1:
            raise InputError(f"directions must be at least 1, but are {self.directions}")
        if not 0 <= self.collective < 1:
            raise InputError(f"collective must be from 0 to below 1, but is {self.collective:g}")
        if self.collective > 0 and self.directions > 1:
            raise InputError("collective directions are drawn one at a time: set directions to 1")
        if not 0 < self.kappa < math.inf:
            raise InputError(f"kappa must be positive and finite, but is {self.kappa:g}")
        if not self.robust > 0:
            raise InputError(f"robust must be positive, but is {self.robust:g}")
        if not self.damping > 0:
            raise InputError(f"damping must be positive, but is {self.damping:g}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be from 0 to below 1, but is {self.momentum:g}")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["energy", "tau", "potential", "jacobian"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Residuals:
    """What a sample contributes to a least squares problem, and its derivatives.

    Attributes:
        energy: T_s minus the label in mHa.
        tau: a random projection of the error of the kinetic energy density; the mean of its square
            is ∫(Δτ)²/τ₀ dr in mHa with τ₀ = τ_TF + ½n.
        potential: errors of δT_s/δn along random directions; the mean of their squares' sum is
            the error as an energy (`residual_energy`, with κ of the settings) in mHa.
        jacobian: derivatives by the parameters of those numbers that have a weight, in this order.
    """

    energy: Float[Array, "*batch"]
    tau: Float[Array, "*batch"]
    potential: Float[Array, "*batch directions"]
    jacobian: Float[Array, "*batch rows parameters"]


def residuals(
    site: Site,
    params: Params,
    targets: Targets,
    key: Array,
    settings: GaussNewtonSettings,
    weights: LossWeights,
    at_a_time: int = 1,
) -> Residuals:
    """Residuals at densities of one geometry, not weighted; those of weight zero are zero.

    Args:
        site: the geometry.
        params: of the network.
        targets: the densities and their labels, with a leading axis.
        key: for the directions.
        settings: the directions of the potential.
        weights: of the losses.
        at_a_time: samples that are processed together.
    """
    potential_key, tau_key = jax.random.split(key)
    scaled = _directions(site, targets, potential_key, settings)
    changes = expand_in_functions(site.space, scaled).astype(site.grid.weights.dtype)
    tau_keys = jax.random.split(tau_key, len(targets.real))

    def sample(of: tuple[Targets, Array, Array, Array]) -> Residuals:
        return _sample_residuals(site, params, weights, *of)

    return jax.lax.map(sample, (targets, scaled, changes, tau_keys), batch_size=at_a_time)


def _sample_residuals(
    site: Site,
    params: Params,
    weights: LossWeights,
    targets: Targets,
    scaled: Float[Array, "directions functions"],
    changes: Float[Array, "directions 4 points"],
    tau_key: Array,
) -> Residuals:
    """Those at one density, of the potential along changes of ψ with these coefficients."""
    dtype = site.grid.weights.dtype
    known: Targets = cast(targets, dtype)
    flat, unravel = ravel_pytree(params)

    def both(flat: Float[Array, "parameters"], density: GridDensity) -> tuple[Scalar, Any]:
        functional = replace(site.functional, params=unravel(flat))
        return functional.remainder_and_density(site.molecule, site.grid, density)

    def slope(density: GridDensity) -> tuple[Array, Array]:
        return jax.value_and_grad(lambda flat: both(flat, density)[0])(flat)

    if weights.potential > 0:
        (energy, row), derivative = jax.linearize(slope, known.density)
        values, rows = jax.lax.map(derivative, _density_changes(known, changes))
        labelled = jnp.all(jnp.isfinite(known.gradient)) & targets.real
        values -= scaled.astype(dtype) @ jnp.where(labelled, known.gradient, 0)
        unit = jnp.where(labelled, MILLIHARTREE**-0.5, 0)
        potential, potential_rows = unit * values, unit * rows
    else:
        energy, row = slope(known.density)
        potential, potential_rows = jnp.zeros(len(scaled), dtype), jnp.zeros((0, len(flat)), dtype)
    tau, tau_rows = jnp.zeros((), dtype), jnp.zeros((0, len(flat)), dtype)
    if weights.tau > 0:
        projection = _projection(site, known, tau_key)

        def projected(flat: Float[Array, "parameters"]) -> Scalar:
            _, found = both(flat, known.density)
            return jnp.zeros((), dtype) if found is None else projection @ (found - known.tau)

        tau, tau_row = jax.value_and_grad(projected)(flat)
        tau_rows = tau_row[None]
    # In the precision of the label, as both numbers are large.
    error = (energy.astype(targets.energy.dtype) - targets.energy).astype(dtype)
    real = jnp.where(targets.real, 1, 0).astype(dtype)
    energy_rows = row[None, :] if weights.energy > 0 else tau_rows[:0]
    return Residuals(
        real / MILLIHARTREE * error,
        real * tau,
        potential,
        jnp.concatenate([real / MILLIHARTREE * energy_rows, real * tau_rows, potential_rows]),
    )


def _directions(
    site: Site, targets: Targets, key: Array, settings: GaussNewtonSettings
) -> Float[Array, "samples count functions"]:
    """Changes of ψ for every sample, in random orthogonal directions."""
    functions, samples = targets.x.shape[1], len(targets.real)
    count = min(settings.directions, functions)
    drawn = jax.random.normal(key, (samples, functions, count), float)
    square: Any = functions / count
    if settings.collective > 0:
        block = collective_changes(site, targets, settings.kappa)
        dimension = jnp.sum(block**2, axis=(1, 2), keepdims=True)
        shape = (samples, 1, 1)
        chosen = jax.random.bernoulli(jax.random.fold_in(key, 1), settings.collective, shape)
        inside = block @ (jnp.swapaxes(block, 1, 2) @ drawn)
        drawn = jnp.where(chosen, inside, drawn - inside)
        share = jnp.where(chosen, settings.collective, 1 - settings.collective)
        square = jnp.where(chosen, dimension, functions - dimension) / (count * share)
    orthonormal, _ = jnp.linalg.qr(drawn)
    rows = jnp.swapaxes(orthonormal, 1, 2) * jnp.sqrt(square)
    scale = partial(preconditioned_changes, site.space, kappa=settings.kappa)
    return jax.vmap(scale)(targets.x, rows)


def collective_changes(
    site: Site, targets: Targets, kappa: float = KAPPA
) -> Float[Array, "samples functions changes"]:
    """Orthonormal directions in which electrons move together.

    The space of ψ w_A, ψ w_A (r - R_A), ψ w_A |r - R_A| and ψ w_A |r - R_A|² for all atoms A:
    electrons that go from one atom to another, and those of an atom that are shifted or spread, or
    go from its middle into its tail. w_A are smooth weights of the atoms, Σ_A w_A = 1. A random
    direction hardly ever is one of these few, but between two molecules most of the error of a
    potential is the height of the step.

    Args:
        site: the geometry.
        targets: densities, with a leading axis.
        kappa: κ in hartree with which directions are scaled.

    Returns:
        Directions as `preconditioned_changes` takes them.
    """
    space, positions = site.space, jnp.asarray(site.molecule.positions)
    vectors = space.grid.points[:, None] - positions
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    powers = [jnp.ones_like(lengths), vectors, lengths, lengths**2]
    forms = jnp.concatenate(powers, axis=-1)
    forms *= jax.nn.softmax(-lengths, axis=1)
    forms = forms.reshape(len(forms), -1)
    roots = jnp.sqrt(space.density.kinetic_eigenvalues + kappa)
    weighted = (space.grid.weights * targets.psi).T
    columns = weighted[:, :, None] * forms[:, None]
    overlaps = overlaps_with_functions(space, columns.reshape(len(forms), -1))
    overlaps = overlaps.reshape(len(roots), len(targets.psi), -1)

    def of_sample(
        x: Float[Array, "functions"], columns: Float[Array, "functions forms"]
    ) -> Float[Array, "functions changes"]:
        columns *= roots[:, None]
        # ψ itself, which would change N, is in the space as well.
        along = x * roots
        columns -= jnp.outer(along, along @ columns) / jnp.vdot(along, along)
        norms = jnp.linalg.norm(columns, axis=0)
        columns /= jnp.maximum(norms, DEPENDENT * jnp.max(norms))
        vectors, values, _ = jnp.linalg.svd(columns, full_matrices=False)
        return vectors * (values > DEPENDENT)

    return jax.lax.map(lambda of: of_sample(*of), (targets.x, jnp.moveaxis(overlaps, 1, 0)))


def _density_changes(known: Targets, changes: Float[Array, "directions 4 points"]) -> GridDensity:
    """δn = 2ψ δψ and its gradient."""
    value, slopes = changes[:, 0], jnp.moveaxis(changes[:, 1:], 1, 2)
    n = 2 * known.psi * value
    grad_n = 2 * (value[..., None] * known.grad_psi + known.psi[:, None] * slopes)
    return GridDensity(n, grad_n)


def _projection(site: Site, known: Targets, key: Array) -> PerPoint:
    """A random vector whose product with Δτ has the mean square ∫(Δτ)²/τ₀ dr in millihartree."""
    n = known.density.n
    unit = thomas_fermi(n, known.density.grad_n) + TAIL_ENERGY * n
    signs = jax.random.rademacher(key, n.shape, dtype=n.dtype)
    return signs * jnp.sqrt(jnp.abs(site.grid.weights) / ((unit + 1e-10) * MILLIHARTREE))


def least_squares_step(
    settings: GaussNewtonSettings,
    weights: LossWeights,
    curvature_weight: float,
    parts: list[Residuals | CurvatureRows],
    last: Params,
) -> tuple[dict[str, Scalar], Params]:
    """The step that makes the linearized residuals of a batch as small as possible.

    With residuals r and derivatives J, φ = Jᵀ(JJᵀ + λ)⁻¹(r - J μφ₀) + μφ₀.

    Args:
        settings: damping λ and momentum μ.
        weights: of the losses.
        curvature_weight: of the squared residuals of curvatures.
        parts: residuals of each group of the batch.
        last: the step φ₀ before, a tree like the parameters.

    Returns:
        Means over the samples of the loss, the absolute energy error and the squared residuals of
        τ and of the potential in millihartree, and over the directions of the squared residuals of
        curvatures; and φ: what to subtract from the parameters.
    """
    before, unravel = ravel_pytree(last)
    rows, scales, matrices, terms, curvatures = [], [], [], [], []
    count = 0
    for part in parts:
        if isinstance(part, CurvatureRows):
            columns, factors = part.values[:, None], np.array([curvature_weight])
            curvatures.append(part.values**2)
        else:
            energy, tau = part.energy.reshape(-1), part.tau.reshape(-1)
            potential = part.potential.reshape(len(energy), -1)
            terms.append((energy, tau, jnp.sum(potential**2, axis=1)))
            columns = jnp.concatenate([energy[:, None], tau[:, None], potential], axis=1)
            each = [weights.potential] * potential.shape[1]
            factors = np.array([weights.energy, weights.tau, *each])
        count += columns.size
        columns, factors = columns[:, factors > 0], factors[factors > 0].astype(columns.dtype)
        scale = np.sqrt(factors) * (1 + (columns / settings.robust) ** 2) ** -0.25
        rows.append((scale * columns).reshape(-1))
        scales.append(scale.reshape(-1))
        matrices.append(part.jacobian.reshape(-1, len(before)))
    r, scale = jnp.concatenate(rows), jnp.concatenate(scales)
    # J is far larger than everything else and never copied: not for one matrix of all parts, nor
    # to be scaled; of the symmetric product one half is enough.
    lower = [[a @ b.T for b in matrices[: i + 1]] for i, a in enumerate(matrices)]
    products = [row + [later[i].T for later in lower[i + 1 :]] for i, row in enumerate(lower)]
    matrix = (scale[:, None] * jnp.block(products) * scale).astype(float)
    damping = settings.damping * jnp.trace(matrix) / count
    known = scale * jnp.concatenate([jacobian @ before for jacobian in matrices])
    rest = (r - settings.momentum * known).astype(float)
    solution = jnp.linalg.solve(matrix + damping * jnp.eye(len(r)), rest).astype(r.dtype)
    pieces = jnp.split(scale * solution, np.cumsum([len(a) for a in matrices])[:-1])
    step = sum(piece @ jacobian for piece, jacobian in zip(pieces, matrices, strict=True))
    step += settings.momentum * before
    energy, tau, potential = (jnp.concatenate(values) for values in zip(*terms, strict=True))
    loss = weights.energy * energy**2 + weights.tau * tau**2 + weights.potential * potential
    metrics = {
        "loss": loss,
        "energy": jnp.abs(energy),
        "tau": tau**2,
        "potential": potential,
        "curvature": jnp.concatenate(curvatures) if curvatures else jnp.zeros(1),
    }
    return jax.tree.map(jnp.mean, metrics), unravel(step)
