"""Representations of the electron density, and starting guesses."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.basis import Basis, evaluate, evaluate_with_gradient
from kineticnet_jax.errors import InputError
from kineticnet_jax.grid import GridDensity, in_blocks
from kineticnet_jax.system import System
from kineticnet_jax.types import PerPoint, Points, Positions, Scalar

if TYPE_CHECKING:
    from kineticnet_jax.reference import KohnSham


KAPPA = 1.0
"""Shift κ in hartree, the scale of valence energies, in norms and preconditioners T + κS."""


@runtime_checkable
class Density(Protocol):
    """An electron density that can be sampled on the grid of a system."""

    def on_grid(self, system: System) -> GridDensity:
        """The density and its gradient on the points of `system.grid`."""
        ...


@partial(jax.tree_util.register_dataclass, data_fields=["coefficients"], meta_fields=[])
@dataclass(frozen=True)
class SqrtDensity:
    """n = ψ² with ψ = √(N / cᵀSc) Σ_μ c_μ χ_μ in the density basis of a system.

    Positive, and normalised to N electrons for any coefficients; only their direction counts.

    Attributes:
        coefficients: c_μ, shape (functions,); with leading axes, a batch for `jax.vmap`.

    Reference: M. Levy, J. P. Perdew, V. Sahni, Phys. Rev. A 30, 2745 (1984).
    """

    coefficients: Float[Array, "*batch functions"]

    def normalized(self, system: System) -> "SqrtDensity":
        """The same density with coefficients that satisfy cᵀSc = N."""
        c = self.coefficients
        norm = jnp.vdot(c, system.density_basis.overlap @ c)
        return SqrtDensity(c * jnp.sqrt(system.n_electrons / norm))

    def amplitude(self, system: System) -> tuple[PerPoint, Points]:
        """ψ and ∇ψ on the grid."""
        c = self.normalized(system).coefficients
        values = (c @ system.density_basis.on_grid).reshape(4, -1)
        return values[0], values[1:].T

    def on_grid(self, system: System) -> GridDensity:
        """On the grid, n = ψ² and ∇n = 2ψ∇ψ."""
        psi, grad_psi = self.amplitude(system)
        return GridDensity(psi**2, 2 * psi[:, None] * grad_psi)

    def at(self, system: System, points: Points) -> PerPoint:
        """The density in bohr⁻³ at any points (bohr), such as those of a plot."""
        c = self.normalized(system).coefficients
        return (
            _amplitude_at(
                system.density_basis.functions, jnp.asarray(system.molecule.positions), c, points
            )
            ** 2
        )

    def von_weizsaecker(self, system: System) -> Scalar:
        """T_vW = ½∫|∇ψ|² dr = cᵀTc in hartree, without quadrature."""
        c = self.normalized(system).coefficients
        return jnp.vdot(c, system.density_basis.kinetic @ c)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "basis", "orbitals"],
    meta_fields=[],
)
@dataclass(frozen=True)
class OrbitalDensity:
    """n = Σ_i φ_i² from orbitals that carry the square root of their occupation.

    Attributes:
        positions: nuclear positions in bohr.
        basis: Gaussian basis of the orbitals.
        orbitals: √f_i C_μi, shape (functions, orbitals).
    """

    positions: Positions
    basis: Basis
    orbitals: Float[Array, "functions orbitals"] | Float[np.ndarray, "functions orbitals"]

    @classmethod
    def from_kohn_sham(cls, ground_state: "KohnSham") -> "OrbitalDensity":
        """The density of a Kohn–Sham ground state."""
        occupied = ground_state.occupations > 0
        orbitals = ground_state.orbitals[:, occupied] * np.sqrt(ground_state.occupations[occupied])
        return cls(ground_state.positions, ground_state.basis, orbitals)

    @classmethod
    def from_density_matrix(
        cls,
        positions: Positions,
        basis: Basis,
        density_matrix: Float[np.ndarray, "functions functions"],
    ) -> "OrbitalDensity":
        """The density Σ_μν D_μν χ_μ χ_ν of a positive semidefinite density matrix."""
        eigenvalues, vectors = np.linalg.eigh(density_matrix)
        occupied = eigenvalues > 1e-14 * eigenvalues[-1]
        orbitals = vectors[:, occupied] * np.sqrt(eigenvalues[occupied])
        return cls(np.asarray(positions), basis, orbitals)

    @classmethod
    def from_pyscf(
        cls, mol: Any, density_matrix: Float[np.ndarray, "*spins functions functions"]
    ) -> "OrbitalDensity":
        """The density of a calculation with PySCF.

        Args:
            mol: a built `pyscf.gto.Mole` with spherical functions.
            density_matrix: D of `mf.make_rdm1()`, of both spins if there are two.

        Raises:
            InputError: if the molecule has Cartesian functions.
        """
        from kineticnet_jax import reference

        if mol.cart:
            raise InputError("the molecule has Cartesian functions; build it with cart=False")
        total = np.asarray(density_matrix)
        if total.ndim == 3:
            total = total.sum(axis=0)
        return cls.from_density_matrix(mol.atom_coords(), reference.extract_basis(mol), total)

    def at(self, system: System, points: Points) -> PerPoint:
        """The density in bohr⁻³ at any points (bohr), such as those of a plot."""
        del system
        return _sample_orbitals(self.basis, self.positions, self.orbitals, points)[0]

    def on_grid(self, system: System) -> GridDensity:
        """The density and its gradient on the grid."""
        n, grad_n = _sample_orbitals(
            self.basis, self.positions, self.orbitals, jnp.asarray(system.grid.points)
        )
        return GridDensity(n, grad_n)


def initial_density(system: System, guess: str = "sad", seed: int = 0) -> SqrtDensity:
    """A starting density for the optimization.

    Args:
        system: the molecule.
        guess: "sad" (superposed spherical atomic densities), "minao" (a projected minimal basis),
            "hcore" (lowest orbitals of the core Hamiltonian) or "random".
        seed: of the random guess.

    Returns:
        The normalised density whose √n is the least-squares fit to that of the guess.

    Raises:
        InputError: for an unknown guess.
    """
    basis = system.density_basis
    if guess == "random":
        # Damped by the kinetic energy, so that the noise is that of a smooth function.
        damping = 1 / (1 + np.asarray(basis.kinetic_eigenvalues))
        noise = np.random.default_rng(seed).normal(size=damping.shape) * damping
        coefficients = basis.transform @ noise.astype(system.total_dtype)
        # A node of ψ can survive the optimization, as an excited state; a fit to √n has none.
        return fit_sqrt_density(system, SqrtDensity(coefficients))
    from kineticnet_jax import reference

    with reference.LOCK:
        matrix = reference.guess_density_matrix(system.molecule, system.basis, guess)
        orbital_basis = reference.extract_basis(reference.build_mole(system.molecule, system.basis))
    start = OrbitalDensity.from_density_matrix(system.molecule.positions, orbital_basis, matrix)
    return fit_sqrt_density(system, start)


def fit_sqrt_density(system: System, density: Density) -> SqrtDensity:
    """Least-squares fit of √n in the density basis of a system, normalised; see `fit_sources`.

    Args:
        system: the molecule.
        density: any density that can be sampled on its grid.

    Returns:
        The fit; its distance from `density` depends on the basis.
    """
    return _fit(system, density.on_grid(system))


@jax.jit
def _fit(system: System, density: GridDensity) -> SqrtDensity:
    basis = system.density_basis
    sources = fit_sources(system.grid.weights, *sqrt_amplitude(density))
    projections = basis.transform.T @ (basis.on_grid @ sources.reshape(-1))
    coefficients = basis.transform @ (projections / (basis.kinetic_eigenvalues + KAPPA))
    return SqrtDensity(coefficients).normalized(system)


def sqrt_amplitude(density: GridDensity) -> tuple[PerPoint, Points]:
    """√n and ∇√n = ∇n / (2√n) on the grid; zero where the density is."""
    root = jnp.sqrt(jnp.maximum(density.n, 0.0))
    slope = jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1.0), 0.0)
    return root, slope[:, None] * density.grad_n


def fit_sources(weights: PerPoint, psi: PerPoint, grad_psi: Points) -> Float[Array, "4 points"]:
    """Right-hand side of the least-squares fit of ψ in functions that diagonalise T.

    The fit Σ x_k u_k is the closest in the norm ½∫|∇f|² + κ∫f², κ = 1 Ha:
    x_k = [½ Σ_g w_g ∇u_k·∇ψ + κ Σ_g w_g u_k ψ] / (t_k + κ). Without the gradient term the
    quadrature error of very tight functions reaches their coefficients undamped: the kinetic
    energy of such a fit to water is wrong by 0.2 Ha at grid level 2, with it by 1 mHa.

    Args:
        weights: quadrature weights in bohr³.
        psi: ψ on the grid.
        grad_psi: ∇ψ on the grid.

    Returns:
        w κ ψ and ½ w ∇ψ, to be summed against u_k and ∇u_k.
    """
    return weights * jnp.concatenate([KAPPA * psi[None], 0.5 * grad_psi.T])


@jax.jit
def _amplitude_at(
    basis: Basis,
    positions: Float[Array, "atoms 3"],
    coefficients: Float[Array, "functions"],
    points: Float[Array, "points 3"],
) -> Float[Array, "points"]:
    def at_point(point: Float[Array, "3"]) -> Float[Array, ""]:
        return coefficients @ evaluate(basis, positions, point[None])[:, 0]

    return jax.lax.map(at_point, points, batch_size=4096)


@jax.jit
def _sample_orbitals(
    basis: Basis,
    positions: Float[Array, "atoms 3"],
    orbitals: Float[Array, "functions orbitals"],
    points: Float[Array, "points 3"],
) -> tuple[Float[Array, "points"], Float[Array, "points 3"]]:
    def at(
        block: Float[Array, "block 3"],
    ) -> tuple[Float[Array, "block"], Float[Array, "block 3"]]:
        functions = evaluate_with_gradient(basis, positions, block)
        values = jnp.einsum("mi,mxg->xig", orbitals.astype(block.dtype), functions)
        return jnp.sum(values[0] ** 2, axis=0), 2 * jnp.einsum("ig,xig->gx", values[0], values[1:])

    n, grad_n = jax.lax.map(at, in_blocks(points))
    # Where float64 is on, so are the functions, whatever the precision of the points.
    return n.reshape(-1).astype(points.dtype), grad_n.reshape(-1, 3).astype(points.dtype)
