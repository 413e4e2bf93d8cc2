"""Errors and losses of a learned functional: energy, kinetic energy density and potential."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kineticnet_jax.data.spaces import (
    OneElectronSpace,
    potential_sources,
    project_on_functions,
    residual_energy,
)
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.network import Params
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.train.groups import Group, Targets, over_geometries
from kineticnet_jax.types import Scalar

CHUNK = 1 << 15
"""Points processed together: whole grids of small molecules, as training keeps filters anyway."""

MILLIHARTREE = 1e-3
"""In hartree."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["energy", "tau", "potential", "real"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Errors:
    """Errors of a functional at densities with known labels, one entry for each sample.

    Attributes:
        energy: T_s minus the label in hartree.
        tau: ∫|τ - label| dr in hartree, zero for a functional without kinetic energy density.
        potential: error of δT_s/δn as an energy in hartree, see `residual_energy`; zero where
            there is no label.
        real: whether the sample counts.
    """

    energy: Float[Array, "*batch"]
    tau: Float[Array, "*batch"]
    potential: Float[Array, "*batch"]
    real: Bool[Array, "*batch"]


@dataclass(frozen=True)
class LossWeights:
    """How much each error counts; all errors are in millihartree.

    With Adam the loss of a sample is energy · (√(1 + ΔT²) - 1) + tau · ∫|Δτ| dr + potential · ΔV:
    squares of small energy errors, absolute values of large ones. Least squares steps have the
    squares of `Residuals` instead.

    Attributes:
        energy: weight of the kinetic energy.
        tau: weight of the kinetic energy density.
        potential: weight of the potential.
    """

    energy: float = 1.0
    tau: float = 0.01
    potential: float = 1.0


def loss_of(errors: Errors, weights: LossWeights) -> tuple[Scalar, dict[str, Scalar]]:
    """The loss and its terms in millihartree, summed over the samples that count.

    Returns:
        The loss, and the absolute error of the energy and the errors of τ and of the potential
        under the names of `LossWeights`.
    """

    def total(values: Float[Array, "*batch"]) -> Scalar:
        return jnp.sum(jnp.where(errors.real, values, 0)) / MILLIHARTREE

    robust = MILLIHARTREE * (jnp.sqrt(1 + (errors.energy / MILLIHARTREE) ** 2) - 1)
    terms = {
        "energy": total(jnp.abs(errors.energy)),
        "tau": total(errors.tau),
        "potential": total(errors.potential),
    }
    loss = (
        weights.energy * total(robust)
        + weights.tau * terms["tau"]
        + weights.potential * terms["potential"]
    )
    return loss, terms


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["functional", "molecule", "grid", "space", "kinetic_eigenvalues"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Site:
    """What all samples of a geometry share, in the precision of the functional.

    Attributes:
        functional: bound to the geometry.
        molecule: charges and positions.
        grid: quadrature points and weights.
        space: the basis of √n, in float64.
        kinetic_eigenvalues: kinetic energies of its orthonormal functions in hartree.
    """

    functional: LearnedFunctional
    molecule: Molecule
    grid: Grid
    space: OneElectronSpace
    kinetic_eigenvalues: Float[Array, "functions"]


def prepare_geometry(
    functional: LearnedFunctional, group: Group, dtype: np.typing.DTypeLike
) -> tuple[Site, Targets]:
    """What the errors at the densities of one geometry need; nothing depends on the parameters.

    Args:
        functional: to be judged.
        group: one geometry, without a leading axis; labels are made in float64.
        dtype: precision of the functional.
    """
    space = group.space
    targets = group.targets()
    grid = cast(space.grid, dtype)
    molecule = Molecule(space.charges, space.positions)
    if functional.target == "pauli":
        targets = jax.vmap(partial(_pauli_part, space))(targets)
    eigenvalues = cast(space.density.kinetic_eigenvalues, dtype)
    bound = functional.bind_traced(molecule, grid, CHUNK)
    return Site(bound, molecule, grid, space, eigenvalues), targets


def sample_errors(
    site: Site, params: Params, targets: Targets, potentials: bool = True, at_a_time: int = 1
) -> Errors:
    """Errors at densities of one geometry; pure and differentiable.

    Args:
        site: the geometry.
        params: of the network.
        targets: the densities and their labels, with a leading axis.
        potentials: whether errors of the potential are evaluated, most of the work.
        at_a_time: samples that are processed together.
    """
    grid, dtype = site.grid, site.grid.weights.dtype
    functional = replace(site.functional, params=params)

    def sample(targets: Targets) -> tuple[Scalar, Scalar, Float[Array, "4 points"] | None]:
        known = cast(targets, dtype)

        def energy(density: GridDensity) -> tuple[Scalar, Scalar]:
            total, tau = functional.remainder_and_density(site.molecule, grid, density)
            if tau is None:
                return total, jnp.zeros((), dtype)
            return total, jnp.vdot(grid.weights, jnp.abs(tau - known.tau))

        if potentials:
            (value, wrong), slope = jax.value_and_grad(energy, has_aux=True)(known.density)
            source = potential_sources(slope, known.psi, known.grad_psi)
        else:
            value, wrong = energy(known.density)
            source = None
        # In the precision of the label, as both numbers are large.
        error = value.astype(targets.energy.dtype) - targets.energy
        return error.astype(dtype), wrong, source

    energy, tau, sources = jax.lax.map(sample, targets, batch_size=at_a_time)
    potential = jnp.zeros_like(energy)
    if potentials:
        action = project_on_functions(site.space, sources.astype(float)).astype(dtype)
        error = partial(_potential_error, site.kinetic_eigenvalues)
        potential = jax.vmap(error)(action, cast(targets, dtype))
    return Errors(energy, tau, potential, targets.real)


def _potential_error(
    kinetic_eigenvalues: Float[Array, "functions"],
    action: Float[Array, "functions"],
    known: Targets,
) -> Scalar:
    """The residual of the derivative along 2ψ u_k as an energy, without the direction of ψ."""
    x = known.x
    action -= x * jnp.vdot(x, action) / jnp.vdot(x, x)
    labelled = jnp.all(jnp.isfinite(known.gradient))
    residual = jnp.where(labelled, action - jnp.where(labelled, known.gradient, 0), 0)
    return residual_energy(residual, kinetic_eigenvalues)


def _pauli_part(space: OneElectronSpace, targets: Targets) -> Targets:
    """The labels of T_s - T_vW. In ∫(τ - τ_vW) dr the quadrature errors of the cores cancel.

    The gradient of T_vW is that of the fit to √n, dT_vW/dx_k = 2 t_k x_k, as in density
    optimization: by quadrature it would be wrong by several mHa in the cores on a coarse grid.
    """
    tau = targets.tau - von_weizsaecker(targets.density.n, targets.density.grad_n)
    along = 2 * space.density.kinetic_eigenvalues * targets.x
    along -= targets.x * jnp.vdot(targets.x, along) / jnp.vdot(targets.x, targets.x)
    return replace(
        targets,
        tau=tau,
        energy=integrate(space.grid.weights, tau),
        gradient=targets.gradient - along,
    )


def cast(tree: Any, dtype: np.typing.DTypeLike) -> Any:
    """A pytree with its floating-point numbers in another precision."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


@partial(jax.jit, static_argnames=("dtype", "potentials"))
def validation_errors(
    functional: LearnedFunctional,
    params: Params,
    group: Group,
    dtype: str,
    potentials: bool = True,
) -> Errors:
    """Errors at all samples of a group, of shape (geometries, samples).

    Args:
        functional: whose parameters are replaced.
        params: of the network.
        group: the samples.
        dtype: precision of the functional.
        potentials: whether errors of the potential are evaluated, most of the work.
    """

    def geometry(_: None, part: Group) -> tuple[None, Errors]:
        site, targets = prepare_geometry(functional, part, dtype)
        return None, sample_errors(site, params, targets, potentials)

    return over_geometries(geometry, None, group)[1]
