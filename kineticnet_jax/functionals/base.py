"""What a kinetic energy functional is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.types import PerPoint, Points, Scalar

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
