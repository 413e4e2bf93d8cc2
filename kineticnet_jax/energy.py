"""The orbital-free total energy, a pure function of the density."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from kineticnet_jax.density import Density, SqrtDensity
from kineticnet_jax.electrostatics import external_energy, hartree_energy
from kineticnet_jax.errors import unknown_name
from kineticnet_jax.functionals.base import Functional, SplitFunctional, bind_functional
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.functionals.xc import XC_FUNCTIONALS
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import System
from kineticnet_jax.types import Scalar

COMPONENTS = ("kinetic", "hartree", "xc", "external", "nuclear")
"""Terms of the total energy, in the order of tables."""

NO_XC = "none"
"""Name that switches exchange and correlation off."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["system", "functional"],
    meta_fields=["xc", "hartree"],
)
@dataclass(frozen=True)
class TotalEnergy:
    """E[n] = T_s[n] + E_H[n] + E_xc[n] + ∫ v n dr + E_nn as a function of a density.

    A pytree, so that it can be an argument of a jitted function. `energy(density)` works under
    `jax.grad`, `jax.jit`, `jax.vmap` and Hessian-vector products.

    Attributes:
        system: the molecule.
        functional: T_s.
        xc: exchange-correlation functional, "none" for none.
        hartree: whether E_H is part of the energy.
    """

    system: System
    functional: Functional
    xc: str = "blyp"
    hartree: bool = True

    def __call__(self, density: Density) -> Scalar:
        """Total energy in hartree."""
        return _total(self, density)

    def components(self, density: Density) -> dict[str, Scalar]:
        """The terms of the energy in hartree, by the names in COMPONENTS."""
        values = _components(self, density)
        return {name: values[name] for name in COMPONENTS}


def total_energy(
    system: System, functional: Functional | str, xc: str = "blyp", hartree: bool = True
) -> TotalEnergy:
    """The orbital-free total energy of a system as a function of the density.

    Args:
        system: from `prepare`.
        functional: kinetic energy functional or its name.
        xc: exchange-correlation functional: "lda", "pbe", "blyp" or "none".
        hartree: False for electrons that do not interact.

    Returns:
        A pure, jitted, differentiable function from a density to hartree.

    Raises:
        InputError: for an unknown functional, or an element it cannot be used for.
    """
    if isinstance(functional, str):
        functional = load_functional(functional)
    if xc.lower() not in (*XC_FUNCTIONALS, NO_XC):
        raise unknown_name("xc functional", xc, (*XC_FUNCTIONALS, NO_XC))
    functional = bind_functional(functional, system.molecule, system.grid)
    return TotalEnergy(system, functional, xc.lower(), hartree)


def kinetic_energy(functional: Functional, system: System, density: Density) -> Scalar:
    """T_s[n] in hartree; for ψ in a basis, its von Weizsäcker part without quadrature.

    For many densities of one system, `total_energy` computes once what depends on the geometry.

    Args:
        functional: the kinetic energy functional.
        system: the molecule.
        density: any density of it.

    Raises:
        InputError: for an element the functional cannot be used for.
    """
    functional = bind_functional(functional, system.molecule, system.grid, many=False)
    return _kinetic_energy(functional, system, density)


@jax.jit
def _kinetic_energy(functional: Functional, system: System, density: Density) -> Scalar:
    return _kinetic(functional, system, density, density.on_grid(system))


def _kinetic(
    functional: Functional, system: System, density: Density, sampled: GridDensity
) -> Scalar:
    if isinstance(density, SqrtDensity) and isinstance(functional, SplitFunctional):
        rest = functional.remainder(system.molecule, system.grid, sampled)
        return functional.vw_fraction * density.von_weizsaecker(system) + rest
    return functional(system.molecule, system.grid, sampled)


@jax.jit
def _components(energy: TotalEnergy, density: Density) -> dict[str, Scalar]:
    system = energy.system
    weights, sampled = system.grid.weights.astype(system.total_dtype), density.on_grid(system)
    zero = jnp.zeros((), dtype=system.total_dtype)
    xc_density = XC_FUNCTIONALS.get(energy.xc)
    return {
        "kinetic": _kinetic(energy.functional, system, density, sampled).astype(zero.dtype),
        "hartree": hartree_energy(system.hartree_operator, weights, sampled.n)
        if energy.hartree
        else zero,
        "xc": integrate(weights, xc_density(sampled.n, sampled.grad_n)) if xc_density else zero,
        "external": external_energy(system.external_potential, weights, sampled.n),
        "nuclear": system.nuclear_repulsion,
    }


@jax.jit
def _total(energy: TotalEnergy, density: Density) -> Scalar:
    return sum(
        _components(energy, density).values(), start=jnp.zeros((), energy.system.total_dtype)
    )
