"""Calculator for ASE: energies, forces and dipole moments by orbital-free density optimization."""

from typing import Any, ClassVar

import jax
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    all_changes,
)

from kineticnet_jax.density import SqrtDensity
from kineticnet_jax.errors import InputError
from kineticnet_jax.forces import forces
from kineticnet_jax.functionals.base import Functional
from kineticnet_jax.functionals.registry import load_functional, training_conditions
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Solution, optimize_density
from kineticnet_jax.response import dipole_moment
from kineticnet_jax.system import System, prepare


class KineticNet(Calculator):
    """Orbital-free density functional theory as an ASE calculator.

    Every calculation begins with the density of the last one, and all geometries of a molecule
    share their compiled programs. Energies in eV, forces in eV/Å, dipole moments in e Å.

    Args:
        functional: kinetic energy functional: a name, the folder of a learned one, or any function
            of molecule, grid and density.
        xc: exchange-correlation functional; by default as in training of a learned functional, else
            "blyp".
        basis: orbital basis; by default as in training, else "cc-pvdz".
        density_basis: basis of √n; by default as in training, else as in `prepare`.
        charge: total charge of the molecule.
        grid_level: of the quadrature grid.
        guess: first starting density.
        tolerance: of the optimization; the error of forces is of this size.
        max_steps: of one optimization.
        kwargs: as for every ASE calculator.

    Raises:
        InputError: for an unknown functional.

    Attributes:
        solution: of the last calculation, in atomic units.
        system: of the last calculation.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "dipole"]

    def __init__(
        self,
        functional: Functional | str = "two-electron",
        xc: str | None = None,
        basis: str | None = None,
        density_basis: str | None = None,
        charge: int = 0,
        grid_level: int = 3,
        guess: str = "sad",
        tolerance: float = 1e-6,
        max_steps: int = 200,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.functional = load_functional(functional) if isinstance(functional, str) else functional
        trained = training_conditions(self.functional)
        self.xc = xc or trained.get("xc") or "blyp"
        self.basis = basis or trained.get("basis") or "cc-pvdz"
        self.density_basis = density_basis or trained.get("density basis") or None
        self.charge, self.grid_level, self.guess = charge, grid_level, guess
        self.tolerance, self.max_steps = tolerance, max_steps
        self.solution: Solution | None = None
        self.system: System | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Optimizes the density of the atoms and stores what was asked for in `results`.

        Raises:
            CalculatorSetupError: for a structure that is periodic, has an odd number of electrons,
                or an element that the basis or the functional does not know.
            CalculationFailed: if the density does not converge.
        """
        super().calculate(atoms, properties, system_changes)
        with jax.enable_x64(True):
            try:
                self._optimize()
            except InputError as error:
                raise CalculatorSetupError(str(error)) from error
            assert self.solution is not None
            if not self.solution.converged:
                raise CalculationFailed(self.solution.reason)
            self._store(properties or ["energy"])

    def _optimize(self) -> None:
        molecule = Molecule.from_ase(self.atoms, self.charge)
        guess: str | SqrtDensity = self.guess
        if self.solution is not None and self.system is not None:
            same = np.array_equal(self.system.molecule.charges, molecule.charges)
            if same and self.solution.converged:
                guess = self.solution.density
        self.system = prepare(molecule, self.basis, self.density_basis, self.grid_level)
        self.solution = optimize_density(
            self.system,
            self.functional,
            self.xc,
            guess,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )

    def _store(self, properties: list[str]) -> None:
        system, solution = self.system, self.solution
        assert system is not None
        assert solution is not None
        energy = solution.energy * units.Hartree
        density = solution.density
        dipole = np.asarray(dipole_moment(system, density)) * units.Bohr
        self.results = {"energy": energy, "free_energy": energy, "dipole": dipole}
        if "forces" in properties:
            found = np.asarray(forces(system, self.functional, density, self.xc))
            self.results["forces"] = found * units.Hartree / units.Bohr
