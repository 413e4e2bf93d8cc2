"""Second derivatives of the total energy at a density, and rows that raise the lowest of them.

A functional whose values and derivatives are right at the densities of its training can still have
a wrong curvature along directions in which these densities never move. There an optimization leaves
the Kohn-Sham density; such directions are the eigenvectors of the Hessian with low eigenvalues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, eigsh

from kineticnet_jax.density import KAPPA, SqrtDensity
from kineticnet_jax.energy import TotalEnergy, total_energy
from kineticnet_jax.fit import Fit, second_derivatives
from kineticnet_jax.functionals.moments import MomentConfig
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.optimize import density_of, retract, variables
from kineticnet_jax.system import System
from kineticnet_jax.types import Scalar

COLUMNS_AT_A_TIME = 8

SMALL = 20
"""Functions up to which the whole Hessian is made to find its lowest eigenvalues."""

LANCZOS_TOLERANCE = 1e-3
"""Relative accuracy of eigenvalues found one by one."""


def energy_hessian(
    energy: TotalEnergy, density: SqrtDensity
) -> Float[Array, "functions functions"]:
    """Second derivatives of the total energy along changes of ψ at constant N.

    Args:
        energy: from `total_energy`.
        density: where.

    Returns:
        d²E/dy², in hartree, for ψ = Σ_k y_k u_k / (2(t_k + κ))^½ with the orthonormal functions u_k
        that diagonalise the kinetic energy and its eigenvalues t_k; for changes of ψ that vary
        rapidly the eigenvalues of the von Weizsäcker energy tend to 1. What is no change of the
        density, a change of N or along a dropped combination of functions, is an eigenvector with
        eigenvalue 1.
    """
    hessian = _hessian(energy, variables(energy.system, density))
    return (hessian + hessian.T) / 2


def lowest_curvatures(
    energy: TotalEnergy, density: SqrtDensity, count: int = 1
) -> tuple[Float[np.ndarray, "count"], Float[np.ndarray, "functions count"]]:
    """The lowest eigenvalues of `energy_hessian` and their eigenvectors.

    By Lanczos' method, except for a small basis.

    Args:
        energy: from `total_energy`.
        density: where.
        count: number of eigenvalues, all of them if there are fewer.

    Returns:
        Eigenvalues in hartree in ascending order, and eigenvectors as columns.
    """
    z = variables(energy.system, density)
    if len(z) <= SMALL:
        values, vectors = np.linalg.eigh(energy_hessian(energy, density))
        return values[:count], vectors[:, :count]
    product = LinearOperator(
        (len(z), len(z)),
        lambda v: np.asarray(_product(energy, z, jnp.asarray(v.reshape(-1)))),
        dtype=z.dtype,
    )
    start = np.random.default_rng(0).normal(size=len(z))
    values, vectors = eigsh(product, count, which="SA", tol=LANCZOS_TOLERANCE, v0=start)
    order = np.argsort(values)
    return values[order], vectors[:, order]


@jax.jit
def _hessian(
    energy: TotalEnergy, z: Float[Array, "functions"]
) -> Float[Array, "functions functions"]:
    identity = jnp.eye(len(z), dtype=z.dtype)
    return jax.lax.map(partial(_product, energy, z), identity, batch_size=COLUMNS_AT_A_TIME)


@jax.jit
def _product(
    energy: TotalEnergy, z: Float[Array, "functions"], v: Float[Array, "functions"]
) -> Float[Array, "functions"]:
    """The Hessian times a vector."""
    basis = energy.system.density_basis
    kept = jnp.any(basis.transform != 0, axis=0)
    normal = jnp.where(kept, z / (basis.kinetic_eigenvalues + KAPPA), 0)
    normal /= jnp.linalg.norm(normal)

    def tangent(v: Float[Array, "functions"]) -> Float[Array, "functions"]:
        return jnp.where(kept, v, 0) - normal * jnp.vdot(normal, v)

    def along(z: Float[Array, "functions"]) -> Scalar:
        return energy(density_of(energy.system, retract(energy.system, z)))

    inside = tangent(v)
    # In the variables of the optimization the eigenvalues are twice as large.
    curved = jax.jvp(jax.grad(along), (z,), (inside,))[1] / 2
    return tangent(curved) + v - inside


@dataclass(frozen=True)
class CutSettings:
    """Which curvatures are raised, and how far.

    Attributes:
        floor: eigenvalues of the Hessian below it are raised.
        goal: to which value.
        weight: of each row in the least-squares problem.
        rounds: largest number of refits.
    """

    floor: float = 0.2
    goal: float = 0.4
    weight: float = 1.0
    rounds: int = 8


def curvature_cuts(
    fit: Fit,
    references: Sequence[tuple[System, SqrtDensity]],
    xc: str = "blyp",
    settings: CutSettings = CutSettings(),
) -> tuple[Fit, list[Float[np.ndarray, "references"]]]:
    """Refits a reference functional until the Hessian has no low eigenvalue at some densities.

    For each eigenvector v with an eigenvalue λ below the floor the second derivative of T_P along v
    is asked to be its present value + goal - λ, as a further row of the least-squares problem.

    Args:
        fit: from `fit_moments`.
        references: systems of training geometries and their Kohn-Sham densities.
        xc: exchange-correlation functional.
        settings: which curvatures are raised.

    Returns:
        The last fit, and the lowest eigenvalue of each reference before every refit and at the end.
    """
    config = fit.functional.moments
    assert config is not None
    lowest = []
    for round_ in range(settings.rounds + 1):
        rows, targets, least = [], [], []
        for system, density in references:
            energy = total_energy(system, fit.functional, xc)
            values, vectors = np.linalg.eigh(np.asarray(energy_hessian(energy, density)))
            least.append(values[0])
            low = values < settings.floor
            if not low.any():
                continue
            features = _rows(config, system, variables(system, density), vectors.T[low])
            features = np.asarray(features)
            rows.append(features)
            coefficients = np.asarray(fit.functional.coefficients)
            targets.append(features @ coefficients + settings.goal - values[low])
        lowest.append(np.array(least))
        if not rows or round_ == settings.rounds:
            break
        fit = fit.with_rows(np.concatenate(rows), np.concatenate(targets), settings.weight)
    return fit, lowest


@partial(jax.jit, static_argnums=0)
def _rows(
    config: MomentConfig,
    system: System,
    z: Float[Array, "functions"],
    directions: Float[Array, "directions functions"],
) -> Float[Array, "directions features"]:
    """Second derivatives of the features along directions, in the units of the Hessian."""

    def row(direction: Float[Array, "functions"]) -> Float[Array, "features"]:
        def path(step: Scalar) -> GridDensity:
            moved = retract(system, z + step * direction / jnp.sqrt(2.0))
            return density_of(system, moved).on_grid(system)

        return second_derivatives(config, system.molecule, system.grid, path)

    return jax.lax.map(row, directions)
