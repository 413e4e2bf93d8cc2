"""Coulomb energies against exact integrals."""

import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import scf

import kineticnet_jax as kn
from kineticnet_jax.electrostatics import hartree_energy, nuclear_attraction, nuclear_repulsion
from kineticnet_jax.reference import build_mole, kohn_sham


@pytest.mark.parametrize("name", ["He", "H2O", "CH4"])
def test_nuclear_repulsion_is_that_of_pyscf(molecule, name):
    m = molecule(name)
    expected = build_mole(m, "sto-3g").energy_nuc()
    assert nuclear_repulsion(m.charges, m.positions) == pytest.approx(float(expected), rel=1e-14)


def test_nuclear_attraction_of_two_charges():
    points = jnp.array([[0.0, 0.0, 1.0], [3.0, 0.0, 4.0]])
    charges, positions = np.array([1, 2]), np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    expected = [-1 - 2 / np.sqrt(10), -1 / 5 - 2 / 4]
    np.testing.assert_allclose(nuclear_attraction(charges, positions, points), expected)


def test_hartree_energy_of_a_gaussian_charge(prepared):
    system = prepared("Ne")
    # ½ ∫∫ n n' / r of a normalised Gaussian (α/π)^1.5 exp(-α r²) is √(α / 2π).
    for exponent in (0.5, 3.0, 40.0):
        r2 = jnp.sum(jnp.asarray(system.grid.points) ** 2, axis=1)
        n = (exponent / np.pi) ** 1.5 * jnp.exp(-exponent * r2)
        energy = hartree_energy(system.hartree_operator, system.grid.weights, n)
        assert energy == pytest.approx(float(np.sqrt(exponent / (2 * np.pi))), rel=1e-5)


@pytest.mark.parametrize("name", ["H2", "stretched H2", "H2O"])
def test_hartree_energy_is_that_of_exact_integrals(prepared, molecule, name):
    system = prepared(name, density_basis="reference")
    ground_state = kohn_sham(molecule(name), "blyp", "cc-pvdz")
    coulomb = scf.hf.RHF(build_mole(molecule(name), "cc-pvdz")).get_j(
        dm=ground_state.density_matrix
    )
    exact = 0.5 * np.vdot(coulomb, ground_state.density_matrix)
    n = kn.OrbitalDensity.from_kohn_sham(ground_state).on_grid(system).n
    energy = hartree_energy(system.hartree_operator, system.grid.weights, n)
    assert abs(float(energy) - exact) < 1e-5


@pytest.mark.parametrize("name", ["He", "H2", "HF", "H2O", "NH3", "CH4", "Ne", "N2"])
def test_energy_without_the_kinetic_one_is_that_of_pyscf(prepared, molecule, name):
    system = prepared(name, density_basis="reference")
    ground_state = kohn_sham(molecule(name), "blyp", "cc-pvdz")
    density = kn.OrbitalDensity.from_kohn_sham(ground_state)
    components = kn.total_energy(system, "tf").components(density)
    ours = sum(float(value) for key, value in components.items() if key != "kinetic")
    theirs = sum(value for key, value in ground_state.components.items() if key != "kinetic")
    assert abs(ours - theirs) < 0.05e-3
