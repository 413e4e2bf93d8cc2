"""The public names; each module is loaded when the first of its names is used."""

from . import interchange, reference
from .batch import optimize_densities
from .data.dataset import Dataset
from .density import (
    Density,
    OrbitalDensity,
    SqrtDensity,
    fit_sqrt_density,
    initial_density,
)
from .energy import TotalEnergy, kinetic_energy, total_energy
from .errors import ConvergenceError, IncompleteError, InputError
from .evaluate import sample_errors
from .fit import fit_moments
from .forces import forces
from .functionals.base import Functional, SemiLocal
from .functionals.learned import LearnedFunctional
from .functionals.registry import load_functional
from .functionals.storage import save_functional
from .grid import Grid, GridDensity, molecular_grid
from .molecule import Molecule
from .nn.config import network_config
from .nn.network import KineticNet
from .optimize import Progress, Solution, optimize_density
from .quadrature import integrate
from .response import dipole_moment, polarizability, relaxed
from .system import System, prepare

__version__: str

__all__ = [
    "ConvergenceError",
    "Dataset",
    "Density",
    "Functional",
    "Grid",
    "GridDensity",
    "IncompleteError",
    "InputError",
    "KineticNet",
    "LearnedFunctional",
    "Molecule",
    "OrbitalDensity",
    "Progress",
    "SemiLocal",
    "Solution",
    "SqrtDensity",
    "System",
    "TotalEnergy",
    "dipole_moment",
    "fit_moments",
    "fit_sqrt_density",
    "forces",
    "initial_density",
    "integrate",
    "interchange",
    "kinetic_energy",
    "load_functional",
    "molecular_grid",
    "network_config",
    "optimize_densities",
    "optimize_density",
    "polarizability",
    "prepare",
    "reference",
    "relaxed",
    "sample_errors",
    "save_functional",
    "total_energy",
]
