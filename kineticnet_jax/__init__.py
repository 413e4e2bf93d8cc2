"""Orbital-free density functional theory with differentiable kinetic energy functionals in JAX."""

from importlib import import_module
from typing import Any

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.density import (
    Density,
    OrbitalDensity,
    SqrtDensity,
    fit_sqrt_density,
    initial_density,
)
from kineticnet_jax.energy import TotalEnergy, kinetic_energy, total_energy
from kineticnet_jax.errors import ConvergenceError, IncompleteError, InputError
from kineticnet_jax.functionals.base import Functional, SemiLocal
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.grid import Grid, GridDensity, molecular_grid
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Progress, Solution, optimize_density
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import System, prepare

__version__ = "0.1.0"


_AT_FIRST_USE = {
    "KineticNet": "kineticnet_jax.nn.network",
    "network_config": "kineticnet_jax.nn.config",
    "LearnedFunctional": "kineticnet_jax.functionals.learned",
    "save_functional": "kineticnet_jax.functionals.storage",
    "fit_moments": "kineticnet_jax.fit",
    "sample_errors": "kineticnet_jax.evaluate",
}


def __getattr__(name: str) -> Any:
    """Imports at first use what loads PySCF or e3nn: each takes a second."""
    if name == "reference":
        return import_module("kineticnet_jax.reference")
    if name in _AT_FIRST_USE:
        return getattr(import_module(_AT_FIRST_USE[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = [
    "ConvergenceError",
    "Dataset",
    "Density",
    "Functional",
    "Grid",
    "GridDensity",
    "IncompleteError",
    "InputError",
    "Molecule",
    "OrbitalDensity",
    "Progress",
    "SemiLocal",
    "Solution",
    "SqrtDensity",
    "System",
    "TotalEnergy",
    "fit_sqrt_density",
    "initial_density",
    "integrate",
    "kinetic_energy",
    "load_functional",
    "molecular_grid",
    "optimize_density",
    "prepare",
    "total_energy",
]
