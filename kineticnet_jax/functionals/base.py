"""What a kinetic energy functional is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.types import PerPoint, Points, Scalar

Target = Literal["pauli", "total"]
"""What a functional learns: T_s - T_vW, or T_s itself."""

EnergyDensity = Callable[[PerPoint, Points], PerPoint]
"""An energy density in hartree/bohr³ from n (bohr⁻³) and ∇n (bohr⁻⁴) at each point."""


@runtime_checkable
class Functional(Protocol):
    """A kinetic energy functional T_s[n] of a density sampled on a grid; a pytree."""

    def __call__(self, molecule: Molecule, grid: Grid, density: GridDensity) -> Scalar:
        """T_s in hartree.

        Args:
            molecule: charges and positions, for functionals that look at the geometry.
            grid: quadrature points and weights.
            density: the density on these points.
        """
        ...


@runtime_checkable
class SplitFunctional(Functional, Protocol):
    """A functional λ T_vW + rest, whose von Weizsäcker part can be evaluated without quadrature.

    Attributes:
        vw_fraction: λ.
    """

    @property
    def vw_fraction(self) -> float:
        """The coefficient λ of T_vW."""
        ...

    def remainder(self, molecule: Molecule, grid: Grid, density: GridDensity) -> Scalar:
        """T_s - λ T_vW in hartree."""
        ...


@runtime_checkable
class GeometryFunctional(Functional, Protocol):
    """A functional with operators that depend on the geometry alone."""

    def bind(self, molecule: Molecule, grid: Grid, many: bool = True) -> Functional:
        """The functional with these operators computed, for this geometry only.

        Args:
            molecule: charges and positions.
            grid: on which densities will be given.
            many: whether it will be evaluated many times.

        Raises:
            InputError: if the functional cannot be used for the molecule.
        """
        ...


@runtime_checkable
class LocalFunctional(Functional, Protocol):
    """A functional with a kinetic energy density."""

    def kinetic_energy_density(
        self, molecule: Molecule, grid: Grid, density: GridDensity
    ) -> PerPoint:
        """τ in hartree/bohr³ on the grid, with ∫τ dr = T_s.

        Raises:
            InputError: if this one has none.
        """
        ...


def bind_functional(
    functional: Functional, molecule: Molecule, grid: Grid, many: bool = True
) -> Functional:
    """Computes what of a functional depends on the geometry alone, if it can.

    Args:
        functional: any functional.
        molecule: charges and positions.
        grid: on which densities will be given.
        many: whether it will be evaluated many times.

    Returns:
        The functional for this geometry; as it is, if it has nothing to compute or if the geometry
        is traced.
    """
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((molecule, grid)))
    if traced or not isinstance(functional, GeometryFunctional):
        return functional
    return functional.bind(molecule, grid, many)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["name", "vw_fraction", "energy_density"],
)
@dataclass(frozen=True)
class SemiLocal:
    """T_s[n] = λ T_vW[n] + ∫ τ(n, ∇n) dr.

    Attributes:
        name: for tables and messages.
        vw_fraction: λ.
        energy_density: τ in hartree/bohr³ from n and ∇n, or None for zero.
    """

    name: str
    vw_fraction: float
    energy_density: EnergyDensity | None

    def __call__(self, molecule: Molecule, grid: Grid, density: GridDensity) -> Scalar:
        """T_s in hartree, everything by quadrature."""
        rest = self.remainder(molecule, grid, density)
        if self.vw_fraction == 0:
            return rest
        tau = von_weizsaecker(density.n, density.grad_n)
        return self.vw_fraction * integrate(grid.weights, tau) + rest

    def remainder(self, molecule: Molecule, grid: Grid, density: GridDensity) -> Scalar:
        """∫ τ dr in hartree."""
        del molecule
        if self.energy_density is None:
            return jnp.zeros((), dtype=grid.weights.dtype)
        return integrate(grid.weights, self.energy_density(density.n, density.grad_n))

    def kinetic_energy_density(
        self, molecule: Molecule, grid: Grid, density: GridDensity
    ) -> PerPoint:
        """λ τ_vW + τ in hartree/bohr³ on the grid."""
        del molecule, grid
        tau = self.vw_fraction * von_weizsaecker(density.n, density.grad_n)
        if self.energy_density is None:
            return tau
        return tau + self.energy_density(density.n, density.grad_n)
