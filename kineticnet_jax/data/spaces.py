"""Spaces of functions in which orbitals and √n are expanded, and integrals with them on a grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kineticnet_jax.basis import Basis, evaluate, evaluate_with_gradient
from kineticnet_jax.density import KAPPA, sqrt_amplitude
from kineticnet_jax.grid import Grid, GridDensity, in_blocks
from kineticnet_jax.types import Charges, PerPoint, Points, Positions, Scalar


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["functions", "transform", "kinetic_eigenvalues"],
    meta_fields=[],
)
@dataclass(frozen=True)
class FunctionSpace:
    """Gaussian functions and the orthonormal combinations of them that diagonalise T.

    Attributes:
        functions: χ_μ.
        transform: U with UᵀSU = 1 and UᵀTU diagonal, zero columns last (dropped combinations).
        kinetic_eigenvalues: diagonal of UᵀTU in hartree, zero for dropped combinations.
    """

    functions: Basis
    transform: Float[Array, "functions functions"]
    kinetic_eigenvalues: Float[Array, "functions"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["charges", "positions", "grid", "orbitals", "density", "kinetic", "attraction"],
    meta_fields=["n_electrons"],
)
@dataclass(frozen=True)
class OneElectronSpace:
    """Everything about a geometry that labels need beside the potential; a pytree of arrays.

    Functions are not kept on the grid but evaluated block by block when they are needed: that is
    faster than reading them from memory that has to be allocated first, and small.

    Attributes:
        charges: nuclear charges.
        positions: nuclear positions in bohr.
        grid: quadrature points and weights.
        orbitals: basis of the orbitals.
        density: basis of √n.
        kinetic: T_μν of the orbital basis in hartree.
        attraction: ⟨χ_μ| 1 / |r - R_A| |χ_ν⟩ of every nucleus.
        n_electrons: number of electrons.
    """

    charges: Charges
    positions: Positions
    grid: Grid
    orbitals: FunctionSpace
    density: FunctionSpace
    kinetic: Float[Array, "functions functions"]
    attraction: Float[Array, "atoms functions functions"]
    n_electrons: int

    @property
    def occupied(self) -> int:
        """Number of doubly occupied orbitals."""
        return self.n_electrons // 2


def sample_orbitals(
    space: OneElectronSpace, orbitals: Float[Array, "functions occupied"]
) -> tuple[PerPoint, Points, PerPoint]:
    """Density, its gradient and the kinetic energy density of doubly occupied orbitals.

    n = 2 Σ_i φ_i²,   τ = Σ_i |∇φ_i|²

    Args:
        space: molecule and orbital basis.
        orbitals: occupied orbitals.
    """
    values = _combine(space, space.orbitals.functions, orbitals.T)
    phi, grad_phi = values[:, 0], values[:, 1:]
    n = 2 * jnp.sum(phi**2, axis=0)
    grad_n = 4 * jnp.sum(phi[:, None] * grad_phi, axis=0).T
    return n, grad_n, jnp.sum(grad_phi**2, axis=(0, 1))


def amplitude(
    space: OneElectronSpace, occupied: Float[Array, "functions occupied"], density: GridDensity
) -> tuple[PerPoint, Points]:
    """ψ = √n and ∇ψ on the grid; of a single orbital φ, ψ = √2 φ with its sign.

    In a finite basis an orbital may change sign far out, where √n has a kink.

    Args:
        space: molecule and orbital basis.
        occupied: occupied orbitals.
        density: of these.
    """
    if space.occupied > 1:
        return sqrt_amplitude(density)
    values = math.sqrt(2) * _combine(space, space.orbitals.functions, occupied.T)[0]
    return values[0], values[1:].T


def expand_in_functions(
    space: OneElectronSpace, coefficients: Float[Array, "*batch functions"]
) -> Float[Array, "*batch 4 points"]:
    """Values and derivatives of Σ_k d_k u_k on the grid, the transpose of `project_on_functions`.

    Args:
        space: molecule and basis of √n.
        coefficients: d of the orthonormal functions u_k.

    Returns:
        The value and the derivatives along x, y and z.
    """
    rows = coefficients.reshape(-1, coefficients.shape[-1]) @ space.density.transform.T
    return _combine(space, space.density.functions, rows).reshape(*coefficients.shape[:-1], 4, -1)


def _combine(
    space: OneElectronSpace, functions: Basis, rows: Float[Array, "rows functions"]
) -> Float[Array, "rows 4 points"]:
    """Values and derivatives of Σ_μ a_μ χ_μ on the grid for each row of coefficients a."""

    def block(points: Points) -> Float[Array, "rows 4 points"]:
        return (rows @ _flat(functions, space, points)).reshape(len(rows), 4, -1)

    values = jax.lax.map(block, in_blocks(space.grid.points))
    return jnp.moveaxis(values, 0, 2).reshape(len(rows), 4, -1)


def _flat(
    functions: Basis, space: OneElectronSpace, points: Points
) -> Float[Array, "functions samples"]:
    """Functions and their gradients on points, one after the other."""
    values = evaluate_with_gradient(functions, space.positions, points)
    return values.reshape(len(values), -1)


def preconditioned_changes(
    space: OneElectronSpace,
    x: Float[Array, "functions"],
    directions: Float[Array, "directions functions"],
    kappa: float = KAPPA,
) -> Float[Array, "directions functions"]:
    """Changes of ψ at constant N, as coefficients d of the orthonormal functions u_k.

    δψ = Σ_k d_k u_k with those of a direction divided by 2 (t_k + κ)^½: summed over all orthonormal
    directions, the squares of residuals are the residual as an energy (`residual_energy`).

    Args:
        space: molecule and basis of √n.
        x: coefficients of ψ.
        directions: coefficients that are scaled.
        kappa: κ in hartree.
    """
    scaled = directions / (2 * jnp.sqrt(space.density.kinetic_eigenvalues + kappa))
    return scaled - jnp.outer(scaled @ x, x) / jnp.vdot(x, x)


def potential_sources(
    slope: GridDensity, psi: PerPoint, grad_psi: Points
) -> Float[Array, "4 points"]:
    """What `project_on_functions` needs for the derivatives of an energy along 2ψ u_k.

    Args:
        slope: derivatives of the energy by n and ∇n at every point, weights included.
        psi: ψ.
        grad_psi: its gradient.
    """
    value = slope.n * psi + jnp.sum(slope.grad_n * grad_psi, axis=1)
    return 2 * jnp.stack([value, *(psi * slope.grad_n.T)])


def project_on_functions(
    space: OneElectronSpace, sources: Float[Array, "sources 4 points"]
) -> Float[Array, "sources functions"]:
    """Σ_g (a_g u_k + b_g·∇u_k) for the orthonormal functions u_k of √n.

    Args:
        space: molecule and basis of √n.
        sources: a and the components of b.
    """
    values = partial(_flat, space.density.functions, space)
    return _overlaps(space, values, jnp.transpose(sources, (2, 1, 0))).T


def overlaps_with_functions(
    space: OneElectronSpace, columns: Float[Array, "points columns"]
) -> Float[Array, "functions columns"]:
    """Σ_g u_k a_g for the orthonormal functions u_k of √n.

    Args:
        space: molecule and basis of √n.
        columns: a, weights of the grid included.
    """
    return _overlaps(space, partial(evaluate, space.density.functions, space.positions), columns)


def _overlaps(
    space: OneElectronSpace,
    values: Callable[[Points], Float[Array, "functions samples"]],
    columns: Float[Array, "points *parts columns"],
) -> Float[Array, "functions columns"]:
    """Sums over the grid of functions, or of these and their derivatives, times columns."""

    def add(
        total: Float[Array, "functions columns"],
        block: tuple[Points, Float[Array, "points *parts columns"]],
    ) -> tuple[Float[Array, "functions columns"], None]:
        points, part = block
        return total + values(points) @ jnp.moveaxis(part, 0, -2).reshape(-1, len(total.T)), None

    zero = jnp.zeros((space.density.functions.size, columns.shape[-1]))
    sums, _ = jax.lax.scan(add, zero, (in_blocks(space.grid.points), in_blocks(columns)))
    return space.density.transform.T @ sums


def density_functions(space: OneElectronSpace) -> Float[Array, "points functions"]:
    """The orthonormal functions u_k of √n on the grid."""
    basis = space.density

    def block(points: Points) -> Float[Array, "points functions"]:
        return evaluate(basis.functions, space.positions, points).T @ basis.transform

    values = jax.lax.map(block, in_blocks(space.grid.points))
    return values.reshape(-1, basis.functions.size)


def residual_energy(
    residual: Float[Array, "functions"], kinetic_eigenvalues: Float[Array, "functions"]
) -> Scalar:
    """A residual of `potential_gradient` as the energy an optimizer would wrongly gain.

    ¼ Σ_μ r_μ² / (t_μ + κ), κ = 1 Ha, in orthonormal functions with kinetic energies t_μ.

    Args:
        residual: of dT_s/dx in hartree.
        kinetic_eigenvalues: t_μ in hartree.

    Returns:
        The energy in hartree.
    """
    return 0.25 * jnp.sum(residual**2 / (kinetic_eigenvalues + KAPPA))
