"""Forces against PySCF's gradients and against differences of our own energies."""

from dataclasses import replace

import numpy as np
import pytest
from pyscf import dft

import kineticnet_jax as kn
from kineticnet_jax import reference

STEP = 1e-3


def optimized(molecule, functional, **settings):
    system = kn.prepare(molecule, **settings)
    return system, kn.optimize_density(system, functional, tolerance=1e-8)


def test_forces_of_exact_functional_are_those_of_kohn_sham(molecule):
    triangle = molecule("H3+")
    system, solution = optimized(triangle, "vw")
    found = kn.forces(system, "vw", solution.density)
    mean_field = dft.RKS(reference.build_mole(triangle, "cc-pvdz"), xc="blyp")
    mean_field.grids.level, mean_field.conv_tol = 4, 1e-12
    mean_field.kernel()
    gradient = mean_field.nuc_grad_method()
    gradient.grid_response = True
    np.testing.assert_allclose(found, -gradient.kernel(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "functional", "settings"),
    [
        ("HeH+", "lkt", {"density_basis": "even-tempered-2.5", "grid_level": 1}),
        ("H2", "two-electron", {"grid_level": 1}),
    ],
)
def test_forces_are_differences_of_optimized_energies(molecule, name, functional, settings):
    place = molecule(name)
    system, solution = optimized(place, functional, **settings)
    found = kn.forces(system, functional, solution.density)
    direction = np.random.default_rng(0).normal(size=found.shape)
    energies = []
    for step in (STEP, -STEP):
        there = replace(place, positions=place.positions + step * direction)
        energies.append(optimized(there, functional, **settings)[1].energy)
    expected = -(energies[0] - energies[1]) / (2 * STEP)
    assert np.vdot(found, direction) == pytest.approx(expected, abs=1e-5)
    # Nothing pulls or turns the whole molecule, but for the directions of the grid.
    np.testing.assert_allclose(np.sum(found, axis=0), 0, atol=1e-8)


def test_forces_in_a_field_are_those_of_kohn_sham(molecule):
    place, field = molecule("HeH+"), np.array([0.01, 0.0, 0.02])
    system, solution = optimized(place, "vw", external_field=tuple(field))
    found = kn.forces(system, "vw", solution.density)
    # The field pulls at the charge, which is one.
    np.testing.assert_allclose(np.sum(found, axis=0), field, atol=1e-6)
    step, energies = STEP * np.array([[0, 0, 0], [0.6, 0, 0.8]]), []
    for sign in (1, -1):
        there = replace(place, positions=place.positions + sign * step)
        mol = reference.build_mole(there, "cc-pvdz")
        mean_field = dft.RKS(mol, xc="blyp")
        mean_field.grids.level, mean_field.conv_tol = 3, 1e-12
        core = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
        core += np.einsum("xmn,x->mn", mol.intor("int1e_r"), field)
        mean_field.get_hcore = lambda *_, core=core: core
        nuclei = there.charges @ there.positions @ field
        energies.append(mean_field.kernel() - nuclei)
    expected = -(energies[0] - energies[1]) / (2 * STEP)
    assert float(found[1] @ np.array([0.6, 0, 0.8])) == pytest.approx(expected, abs=1e-4)


def test_unknown_functional_is_named(molecule):
    system = kn.prepare(molecule("H2"), grid_level=0)
    with pytest.raises(kn.InputError, match="did you mean 'vw'"):
        kn.forces(system, "vww", kn.initial_density(system))


def test_field_that_is_not_finite_is_named(molecule):
    with pytest.raises(kn.InputError, match="external_field must be three finite numbers"):
        kn.prepare(molecule("H2"), grid_level=0, external_field=(0.0, 0.0, float("nan")))
