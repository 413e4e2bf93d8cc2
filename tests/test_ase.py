"""The ASE calculator: geometry optimization, dynamics and its errors."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from pyscf import dft, gto
from scipy.optimize import minimize_scalar

from kineticnet_jax.ase import KineticNet


def hydrogen(length=0.8, **settings):
    return Atoms("H2", [(0, 0, 0), (0, 0, length)], calculator=KineticNet(**settings))


def kohn_sham_energy(length):
    mol = gto.M(atom=f"H 0 0 0; H 0 0 {length}", basis="cc-pvdz", verbose=0)
    mean_field = dft.RKS(mol, xc="blyp")
    mean_field.conv_tol = 1e-11
    return mean_field.kernel()


def test_bond_length_is_that_of_kohn_sham():
    exact = minimize_scalar(kohn_sham_energy, bracket=(0.7, 0.75, 0.8), tol=1e-4).x
    for functional, level, tolerance in (("vw", 2, 1e-3), ("two-electron", 1, 1e-2)):
        atoms = hydrogen(functional=functional, grid_level=level)
        BFGS(atoms, logfile=None).run(fmax=1e-3)
        assert atoms.get_distance(0, 1) == pytest.approx(exact, abs=tolerance)
        np.testing.assert_allclose(atoms.get_dipole_moment(), 0, atol=1e-6)


def test_dynamics_conserve_the_energy():
    atoms = hydrogen(length=0.78, functional="vw", grid_level=2)
    dynamics = VelocityVerlet(atoms, 0.2 * units.fs)
    energies = []
    for _ in range(20):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
    assert np.ptp(energies) < 1e-3 * units.Hartree
    # Every step begins with the density of the last one.
    assert atoms.calc.solution.steps < 8


def test_what_cannot_be_computed_says_why():
    with pytest.raises(CalculatorSetupError, match="even, positive number of electrons"):
        Atoms("H", calculator=KineticNet()).get_potential_energy()
    with pytest.raises(CalculatorSetupError, match="periodic"):
        Atoms("He", pbc=True, cell=(5, 5, 5), calculator=KineticNet()).get_potential_energy()
    with pytest.raises(CalculatorSetupError, match="C"):
        Atoms("C", calculator=KineticNet()).get_potential_energy()
    with pytest.raises(CalculationFailed, match="stopped after 1 steps"):
        hydrogen(functional="vw", grid_level=1, max_steps=1).get_potential_energy()
