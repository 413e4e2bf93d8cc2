"""Exact labels of non-interacting ground states, as pure JAX functions.

For any potential v the orbitals of h = T + V give a density n together with its kinetic energy
T_s, its kinetic energy density and the derivative of T_s, without self-consistency.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kineticnet_jax.basis import evaluate
from kineticnet_jax.data.config import Limits
from kineticnet_jax.data.potentials import (
    Perturbation,
    local_potential,
    random_matrix,
    smooth_potential,
)
from kineticnet_jax.data.spaces import (
    OneElectronSpace,
    amplitude,
    project_on_functions,
    sample_orbitals,
)
from kineticnet_jax.density import KAPPA, fit_sources
from kineticnet_jax.electrostatics import nuclear_attraction
from kineticnet_jax.functionals.xc import XC_FUNCTIONALS
from kineticnet_jax.grid import GridDensity, in_blocks
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.types import PerPoint, Points

# Stands for the energy of dropped combinations of basis functions: far above all others.
_DROPPED = 1e8


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrix", "external", "hartree", "xc", "xc_gradient"],
    meta_fields=[],
)
@dataclass(frozen=True)
class KohnShamPotential:
    """v_KS of one density as a matrix and on the grid.

    The xc potential is kept in its weak form: ∫ v_xc f dr = Σ_g w_g (xc f + xc_gradient · ∇f).

    Attributes:
        matrix: ⟨χ_μ|v_KS|χ_ν⟩ in hartree.
        external: potential of the nuclei on the grid.
        hartree: Coulomb potential of the density on the grid.
        xc: ∂e_xc/∂n on the grid.
        xc_gradient: ∂e_xc/∂∇n on the grid.
    """

    matrix: Float[Array, "*batch functions functions"]
    external: Float[Array, "*batch points"]
    hartree: Float[Array, "*batch points"]
    xc: Float[Array, "*batch points"]
    xc_gradient: Float[Array, "*batch points 3"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "kinetic_energy",
        "orbitals",
        "orbital_energies",
        "n",
        "grad_n",
        "tau",
        "sqrt_coefficients",
        "potential_gradient",
        "orbital_residual",
        "gap",
        "kinetic_error",
        "electron_error",
        "sqrt_fit_error",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Labels:
    """Exact labels of one ground state.

    The potential between orbitals follows from them by `orbital_form`.

    Attributes:
        kinetic_energy: T_s in hartree.
        orbitals: C with φ_i = Σ_μ C_μi χ_μ, the occupied ones first.
        orbital_energies: ε_i in hartree; 1e8 for dropped combinations of functions, which are zero
            and come last.
        n: density on the grid in bohr⁻³.
        grad_n: its gradient.
        tau: kinetic energy density Σ_i |∇φ_i|² of doubly occupied orbitals in hartree/bohr³.
        sqrt_coefficients: x of √n ≈ ψ = Σ_μ (U x)_μ χ_μ in the orthonormal functions U of the
            density basis, |x|² = N. For two electrons ψ is √2 times the orbital.
        potential_gradient: derivative of T_s along the density changes 2√n u_k of the orthonormal
            functions u_k, ∫ δT_s/δn 2√n u_k dr = 2∫(μ - v) √n u_k dr, in hartree, with the
            direction of √n, which would change N, projected out.
        orbital_residual: largest |(T + V)_ai| in hartree.
        gap: ε_LUMO - ε_HOMO in hartree.
        kinetic_error: ∫τ dr - T_s on the grid in hartree.
        electron_error: ∫n dr - N on the grid.
        sqrt_fit_error: ∫|ψ² - n| dr / N.
    """

    kinetic_energy: Float[Array, "*batch"]
    orbitals: Float[Array, "*batch functions orbitals"]
    orbital_energies: Float[Array, "*batch orbitals"]
    n: Float[Array, "*batch points"]
    grad_n: Float[Array, "*batch points 3"]
    tau: Float[Array, "*batch points"]
    sqrt_coefficients: Float[Array, "*batch density_functions"]
    potential_gradient: Float[Array, "*batch density_functions"]
    orbital_residual: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    kinetic_error: Float[Array, "*batch"]
    electron_error: Float[Array, "*batch"]
    sqrt_fit_error: Float[Array, "*batch"]


def kohn_sham_potential(
    space: OneElectronSpace,
    xc: str,
    orbitals: Float[Array, "functions occupied"],
    hartree: PerPoint,
    hartree_matrix: Float[Array, "functions functions"],
    xc_matrix: Float[Array, "functions functions"],
) -> KohnShamPotential:
    """The Kohn-Sham potential of a density, as a matrix and on the grid.

    Args:
        space: molecule and orbital basis.
        xc: exchange-correlation functional.
        orbitals: occupied orbitals of the density.
        hartree: its Coulomb potential on the grid in hartree.
        hartree_matrix: ⟨χ_μ|v_H|χ_ν⟩ in hartree.
        xc_matrix: ⟨χ_μ|v_xc|χ_ν⟩ in hartree.
    """
    nuclei = -jnp.einsum("a,amn->mn", jnp.asarray(space.charges), space.attraction)
    external = nuclear_attraction(space.charges, space.positions, space.grid.points)
    n, grad_n, _ = sample_orbitals(space, orbitals)
    _, pullback = jax.vjp(XC_FUNCTIONALS[xc], n, grad_n)
    slope, slope_gradient = pullback(jnp.ones_like(n))
    matrix = nuclei + hartree_matrix + xc_matrix
    return KohnShamPotential(matrix, external, hartree, slope, slope_gradient)


def perturbation_matrix(
    space: OneElectronSpace, perturbation: Perturbation
) -> Float[Array, "functions functions"]:
    """Matrix of an external potential in the orbital basis.

    Its smooth part is integrated on the grid, where it then is exactly what `local_potential`
    returns; changes of nuclear charges are integrated analytically.

    Args:
        space: molecule and orbital basis.
        perturbation: the potential.
    """

    def add(
        total: Float[Array, "functions functions"], block: tuple[Points, PerPoint]
    ) -> tuple[Float[Array, "functions functions"], None]:
        points, weights = block
        values = evaluate(space.orbitals.functions, space.positions, points)
        return total + (
            values * (weights * smooth_potential(perturbation, points))
        ) @ values.T, None

    blocks = (in_blocks(space.grid.points), in_blocks(space.grid.weights))
    smooth, _ = jax.lax.scan(add, jnp.zeros_like(space.kinetic), blocks)
    charges = jnp.einsum("a,amn->mn", perturbation.charge_change, space.attraction)
    # T U t⁻¹ = S U, the inverse of Uᵀ, carries a matrix between orthonormal functions to the basis.
    t = space.orbitals.kinetic_eigenvalues
    back = (
        space.kinetic @ space.orbitals.transform * jnp.where(t > 0, 1 / jnp.where(t > 0, t, 1), 0)
    )
    random = random_matrix(perturbation, len(space.kinetic))
    return smooth - charges + back @ random @ back.T


def ground_state_labels(
    space: OneElectronSpace, potential: KohnShamPotential, perturbation: Perturbation
) -> Labels:
    """Labels of the non-interacting ground state in v_KS + v_perturbation.

    One generalised diagonalisation; pure, for `jax.jit` and `jax.vmap` over perturbations.

    Args:
        space: molecule and orbital basis.
        potential: v_KS, frozen.
        perturbation: the external potential added to it.

    Returns:
        The labels. With a random matrix in the perturbation there is no local potential and
        `potential_gradient` is not a number.
    """
    matrix = potential.matrix + perturbation_matrix(space, perturbation)
    energies, orbitals = _diagonalize(space, matrix)
    occupied, virtual = orbitals[:, : space.occupied], orbitals[:, space.occupied :]
    kinetic_energy = 2 * jnp.einsum("mi,mn,ni->", occupied, space.kinetic, occupied)
    n, grad_n, tau = sample_orbitals(space, occupied)
    weights = space.grid.weights
    local = local_potential(perturbation, space.positions, space.grid.points)
    psi, grad_psi = amplitude(space, occupied, GridDensity(n, grad_n))
    x, gradient, fit = _density_space(space, potential, local, psi, grad_psi)
    return Labels(
        kinetic_energy,
        orbitals,
        energies,
        n,
        grad_n,
        tau,
        x,
        jnp.where(perturbation.matrix_strength > 0, jnp.nan, gradient),
        jnp.max(jnp.abs(virtual.T @ (space.kinetic + matrix) @ occupied), initial=0.0),
        energies[space.occupied] - energies[space.occupied - 1],
        integrate(weights, tau) - kinetic_energy,
        integrate(weights, n) - space.n_electrons,
        integrate(weights, jnp.abs(fit**2 - n)) / space.n_electrons,
    )


def violations(labels: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Which labels do not keep which limits.

    Args:
        labels: attributes of `Labels` by name, of one sample or of many.
        limits: what a sample must satisfy.

    Returns:
        True where a limit is not kept, by the names under which rejected samples are counted.
    """
    return {
        "orbital-residual": labels["orbital_residual"] > limits.orbital_residual,
        "gap": labels["gap"] < limits.gap,
        "kinetic": abs(labels["kinetic_error"]) > limits.kinetic,
        "electrons": abs(labels["electron_error"]) > limits.electrons,
        "sqrt-fit": labels["sqrt_fit_error"] > limits.sqrt_fit,
    }


def _diagonalize(
    space: OneElectronSpace, potential: Float[Array, "functions functions"]
) -> tuple[Float[Array, "functions"], Float[Array, "functions functions"]]:
    """Orbital energies and orbitals of T + V; dropped combinations come last, as zeros."""
    t, transform = space.orbitals.kinetic_eigenvalues, space.orbitals.transform
    hamiltonian = jnp.diag(jnp.where(t > 0, t, _DROPPED)) + transform.T @ potential @ transform
    energies, vectors = _eigh(hamiltonian)
    return energies, transform @ vectors


@jax.custom_batching.sequential_vmap
def _eigh(
    matrix: Float[Array, "functions functions"],
) -> tuple[Float[Array, "functions"], Float[Array, "functions functions"]]:
    """Eigenvalues and vectors, one matrix after the other under `jax.vmap`.

    A batched `eigh` of jaxlib 0.10 on the CPU waits for threads of the pool that it runs on, and a
    program with two of them can wait for ever.
    """
    energies, vectors = jnp.linalg.eigh(matrix)
    return energies, vectors


def _density_space(
    space: OneElectronSpace,
    potential: KohnShamPotential,
    perturbation: PerPoint,
    psi: PerPoint,
    grad_psi: Points,
) -> tuple[Float[Array, "functions"], Float[Array, "functions"], PerPoint]:
    """ψ in orthonormal functions, the gradient of T_s there, and the fit of ψ on the grid."""
    basis, weights = space.density, space.grid.weights
    vector = weights * potential.xc_gradient.T
    local = potential.external + potential.hartree + potential.xc + perturbation
    along_psi = weights * local * psi + jnp.sum(vector * grad_psi.T, axis=0)
    action = jnp.concatenate([along_psi[None], vector * psi])
    sources = jnp.stack([fit_sources(weights, psi, grad_psi), action])
    projections, action = project_on_functions(space, sources)
    x = projections / (basis.kinetic_eigenvalues + KAPPA)
    x *= jnp.sqrt(space.n_electrons / jnp.vdot(x, x))
    gradient = 2 * (x * jnp.vdot(x, action) / space.n_electrons - action)
    coefficients = basis.transform @ x
    fit = jax.lax.map(
        lambda block: coefficients @ evaluate(basis.functions, space.positions, block),
        in_blocks(space.grid.points),
    )
    return x, gradient, fit.reshape(-1)


def orbital_form(space: OneElectronSpace, labels: Labels) -> Float[Array, "virtual occupied"]:
    """The exact potential label between orbitals, ⟨φ_a|δT_s/δn|φ_i⟩ = ⟨φ_a|-½∇²|φ_i⟩, in hartree.

    From δT_s/δn = μ - v and (T + V)_ai = 0; it needs neither μ nor a projection.

    Args:
        space: molecule and orbital basis.
        labels: of one ground state.
    """
    occupied = labels.orbitals[:, : space.occupied]
    return labels.orbitals[:, space.occupied :].T @ space.kinetic @ occupied
