"""Functions on the grid of large molecules against the matrices of small ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax import system as systems
from kineticnet_jax.boxes import Tree
from kineticnet_jax.forces import forces
from kineticnet_jax.harmonics import gradient_coefficients, solid_harmonics
from kineticnet_jax.reference import build_mole, extract_basis
from kineticnet_jax.tree import TreeOperator, tree_operator

DIMER = """6
two waters
O -1.464 0.099 0.0
H -1.956 0.624 0.632
H -0.544 0.154 0.264
O 1.464 -0.099 0.0
H 1.9 -0.62 0.67
H 1.31 0.76 0.41"""


@pytest.fixture(scope="module")
def dimer():
    return kn.Molecule.from_string(DIMER)


@pytest.fixture(scope="module")
def both(dimer):
    """The same system with matrices and with trees."""
    dense = kn.prepare(dimer, density_basis="cc-pvdz", grid_level=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "DENSE_MEMORY", 0)
        return dense, kn.prepare(dimer, density_basis="cc-pvdz", grid_level=1)


def chain(length):
    lines = [f"H 0 0 {2.5 * i + shift}" for i in range(length) for shift in (0, 0.75)]
    return kn.Molecule.from_string("\n".join([str(2 * length), "", *lines]))


def test_leaves_hold_every_point_once():
    points = np.random.default_rng(0).normal(size=(1000, 3))
    tree = Tree.build(points, leaf=64)
    np.testing.assert_array_equal(tree.order[tree.place], np.arange(1000))
    assert tree.size <= 64
    for centers, radii in zip(tree.centers, tree.radii, strict=True):
        inside = points[tree.order].reshape(len(centers), -1, 3) - centers[:, None]
        assert np.all(np.abs(inside) < radii[:, None] + 1e-12)


@pytest.mark.parametrize("memory", [0, 1 << 40])
def test_products_are_those_with_the_matrix(both, memory):
    dense, tree = both
    basis, molecule = dense.density_basis, dense.molecule
    assert isinstance(tree.density_basis.on_grid, TreeOperator)
    points = dense.grid.points
    operator = tree_operator(
        basis.functions, molecule.positions, points, Tree.build(points), "amplitude", memory=memory
    )
    c = kn.initial_density(dense, "sad").coefficients
    found, expected = jax.jit(lambda o: c @ o)(operator), c @ basis.on_grid
    np.testing.assert_allclose(found, expected, atol=2e-4)
    sources = jnp.asarray(np.random.default_rng(0).normal(size=expected.shape))
    assert jnp.vdot(jax.jit(lambda o: o @ sources)(operator), c) == pytest.approx(
        float(found @ sources), rel=1e-10
    )


def test_energies_and_gradients_are_those_with_matrices(both):
    dense, _ = both
    density = kn.initial_density(dense, "sad")
    energies, gradients = zip(
        *(
            jax.value_and_grad(lambda density, energy=energy: energy(density))(density)
            for energy in (kn.total_energy(system, "tf+vw") for system in both)
        ),
        strict=True,
    )
    assert energies[1] == pytest.approx(float(energies[0]), abs=2e-5)
    scaled = [dense.density_basis.transform.T @ g.coefficients for g in gradients]
    scaled = [g / np.sqrt(dense.density_basis.kinetic_eigenvalues + 1) for g in scaled]
    assert np.linalg.norm(scaled[1] - scaled[0]) < 1e-3 * np.linalg.norm(scaled[0])
    hartree = [kn.total_energy(s, "tf+vw").components(density)["hartree"] for s in both]
    assert abs(hartree[1] - hartree[0]) < 0.01e-3 * len(dense.molecule.charges)


@pytest.mark.slow
def test_forces_are_those_with_matrices(both):
    density = kn.initial_density(both[0], "sad")
    found = [forces(system, "tf+vw", density) for system in both]
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)


def test_work_for_each_atom_does_not_grow_with_the_molecule():
    samples = []
    for length in (16, 32):
        molecule = chain(length)
        basis = extract_basis(build_mole(molecule, "cc-pvdz"))
        points = kn.molecular_grid(molecule, 1).points
        operator = tree_operator(basis, molecule.positions, points, Tree.build(points), "amplitude")
        (group,) = operator.groups
        samples.append(
            np.mean(
                [
                    np.sum(group.samples[group.atom == i] < jnp.max(group.samples))
                    for i in range(2 * length)
                ]
            )
        )
    # With matrices each atom has all points, twice as many in the second molecule.
    assert samples[1] < 1.1 * samples[0] < 0.5 * len(points)


def test_gradients_of_harmonics_are_harmonics_of_one_degree_less():
    points = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
    for l in range(1, 5):
        expected = jax.vmap(jax.jacfwd(partial(solid_harmonics, l)))(points)
        lower = solid_harmonics(l - 1, points)
        found = jnp.einsum("mxn,ng->gmx", gradient_coefficients(l), lower)
        np.testing.assert_allclose(found, expected, atol=1e-12)
