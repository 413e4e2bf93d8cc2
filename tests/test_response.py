"""Derivatives of optimized densities against finite differences and PySCF in finite fields."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import dft

import kineticnet_jax as kn
from kineticnet_jax import reference
from kineticnet_jax.forces import moved, prepare_motion
from kineticnet_jax.functionals.kinetic import thomas_fermi

FIELD = 1e-3


@partial(jax.tree_util.register_dataclass, data_fields=["strength"], meta_fields=["vw_fraction"])
@dataclass(frozen=True)
class WithThomasFermi:
    """T_vW + a T_TF."""

    strength: jax.Array
    vw_fraction: float = 1.0

    def __call__(self, molecule, grid, density):
        raise NotImplementedError

    def remainder(self, molecule, grid, density):
        return self.strength * kn.integrate(grid.weights, thomas_fermi(density.n, density.grad_n))


def optimum(system, functional):
    return kn.optimize_density(system, functional, tolerance=1e-9).density


def spread(system, density):
    """∫ r² n dr, which tells how wide a density is."""
    r2 = jnp.sum(system.grid.points**2, axis=1)
    return kn.integrate(system.grid.weights, r2 * density.on_grid(system).n)


def test_polarizability_is_that_of_kohn_sham_in_finite_fields(prepared):
    system = prepared("H2", level=2)
    found = kn.polarizability(system, "vw", optimum(system, "vw"))
    mol = reference.build_mole(system.molecule, "cc-pvdz")
    core, r = mol.intor("int1e_kin") + mol.intor("int1e_nuc"), mol.intor("int1e_r")
    expected = []
    for axis in range(3):
        dipoles = []
        for sign in (1, -1):
            mean_field = dft.RKS(mol, xc="blyp")
            mean_field.conv_tol = 1e-13
            mean_field.get_hcore = lambda *_, f=sign * FIELD, a=axis: core + f * r[a]
            mean_field.kernel()
            dipoles.append(-np.vdot(r[axis], mean_field.make_rdm1()))
        expected.append((dipoles[0] - dipoles[1]) / (2 * FIELD))
    np.testing.assert_allclose(np.diag(found), expected, rtol=1e-4)
    np.testing.assert_allclose(found, found.T, atol=1e-8)


def test_prepared_fields_change_dipoles_by_the_polarizability(molecule, prepared):
    system = prepared("H2", level=2)
    alpha = kn.polarizability(system, "vw", optimum(system, "vw"))
    dipoles = []
    for sign in (1, -1):
        there = kn.prepare(molecule("H2"), grid_level=2, external_field=(0.0, 0.0, sign * FIELD))
        solution = kn.optimize_density(there, "vw", tolerance=1e-9)
        dipoles.append(kn.dipole_moment(there, solution.density))
    change = (dipoles[0] - dipoles[1]) / (2 * FIELD)
    np.testing.assert_allclose(change, alpha[:, 2], rtol=1e-4, atol=1e-7)


def test_derivatives_by_a_parameter_of_the_functional(prepared):
    system = prepared("HeH+", level=0)

    def energy(strength):
        # Electrons that do not interact: the derivatives of xc functionals take long to compile.
        return kn.TotalEnergy(system, WithThomasFermi(strength), "none", hartree=False)

    def best(strength):
        functional = WithThomasFermi(strength)
        return kn.optimize_density(
            system, functional, "none", tolerance=1e-10, hartree=False
        ).density

    here, step = jnp.array(0.1), 1e-4
    density = best(here)

    def width(strength, derivatives=1):
        return spread(system, kn.relaxed(energy(strength), density, derivatives))

    after, middle, before = (float(spread(system, best(here + k * step))) for k in (1, 0, -1))
    slope = (after - before) / (2 * step)
    assert float(jax.grad(width)(here)) == pytest.approx(slope, rel=1e-4)
    assert float(jax.jacfwd(width)(here)) == pytest.approx(slope, rel=1e-4)
    second = jax.jacfwd(jax.jacfwd(partial(width, derivatives=2)))(here)
    expected = (after - 2 * middle + before) / step**2
    assert float(second) == pytest.approx(expected, rel=1e-2)


def test_derivative_by_the_positions_of_the_nuclei(molecule):
    place = molecule("HeH+")
    system = kn.prepare(place, grid_level=2)
    motion, density = prepare_motion(system), optimum(system, "vw")

    def dipole(positions):
        there = moved(system, motion, positions)
        energy = kn.TotalEnergy(there, kn.load_functional("vw"))
        return kn.dipole_moment(there, kn.relaxed(energy, density))[2]

    slope = jax.grad(dipole)(jnp.asarray(place.positions))
    step, dipoles = 1e-3, []
    for sign in (1, -1):
        positions = place.positions + sign * step * np.array([[0, 0, 0], [0, 0, 1]])
        there = kn.prepare(replace(place, positions=positions), grid_level=2)
        dipoles.append(float(kn.dipole_moment(there, optimum(there, "vw"))[2]))
    assert float(slope[1, 2]) == pytest.approx((dipoles[0] - dipoles[1]) / (2 * step), rel=1e-4)
