"""The molecular grid: exact integrals, PySCF's grid, symmetry, padding and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from geometries import GEOMETRIES
from pyscf import dft
from scipy.spatial import cKDTree

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.functionals.xc import blyp
from kineticnet_jax.grid import becke_cells, bucket_size, grid_template, molecular_grid
from kineticnet_jax.reference import build_mole, kohn_sham

LEVELS = range(6)


@pytest.mark.parametrize("level", LEVELS)
def test_gaussian_integrals_are_exact(level):
    grid = molecular_grid(kn.Molecule.from_string("1\n\nNe 0 0 0\n"), level)
    r2 = jnp.sum(grid.points**2, axis=1)
    # Level 0 is crude on purpose.
    tolerance = 1e-4 if level == 0 else 1e-8
    for exponent in (0.3, 1.0, 10.0):
        integral = kn.integrate(grid.weights, jnp.exp(-exponent * r2))
        assert integral == pytest.approx((np.pi / exponent) ** 1.5, rel=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["H2O", "HCl"])
def test_grid_is_that_of_pyscf(molecule, name, level):
    grid = molecular_grid(molecule(name), level)
    expected = dft.Grids(build_mole(molecule(name), "sto-3g"))
    expected.level, expected.alignment = level, 1
    expected.prune = _pyscf_pruning_without_negative_weights
    expected.build(sort_grids=False)
    real = np.asarray(grid.weights) != 0
    points, weights = np.asarray(grid.points)[real], np.asarray(grid.weights)[real]
    assert abs(len(expected.weights) - len(weights)) <= 0.005 * len(weights)
    distance, nearest = cKDTree(points).query(expected.coords)
    # Weights that underflow to zero here need no partner.
    significant = np.abs(expected.weights) > 1e-12
    assert distance[significant].max() < 1e-10
    difference = weights[nearest] - expected.weights
    assert np.abs(difference[significant]).max() < 1e-10


def _pyscf_pruning_without_negative_weights(*arguments):
    """Lebedev rules of 74, 230 and 266 points have negative weights."""
    sizes = dft.gen_grid.nwchem_prune(*arguments)
    return np.array([{74: 86, 230: 302, 266: 302}.get(int(size), int(size)) for size in sizes])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["HeH+", "LiH", "H2O", "HCl"])
def test_no_weight_is_negative(molecule, name, level):
    assert np.min(molecular_grid(molecule(name), level).weights) >= 0


@pytest.mark.parametrize("name", ["HeH+", "H2O", "N2", "LiH"])
def test_errors_are_at_most_twice_those_of_pyscf(molecule, name):
    ground_state = kohn_sham(molecule(name), "blyp", "cc-pvdz")
    mol = build_mole(molecule(name), "cc-pvdz")
    fine = molecular_grid(molecule(name), 5)
    exact = _integrals(mol, ground_state, fine.points, fine.weights)
    for level in range(4):
        reference = dft.Grids(mol)
        reference.level, reference.alignment = level, 1
        reference.build()
        theirs = _integrals(mol, ground_state, reference.coords, reference.weights)
        grid = molecular_grid(molecule(name), level)
        ours = _integrals(mol, ground_state, grid.points, grid.weights)
        for ours_i, theirs_i, exact_i in zip(ours, theirs, exact, strict=True):
            # Errors below a microhartree are zero for both.
            assert abs(ours_i - exact_i) <= 2 * abs(theirs_i - exact_i) + 1e-6


def _integrals(mol, ground_state, points, weights):
    """Electrons, T_vW, E_xc and E_ext of a Kohn–Sham density, functions from PySCF."""
    points = np.asarray(points)
    functions = dft.numint.eval_ao(mol, points, deriv=1)
    rho = dft.numint.eval_rho(mol, functions, ground_state.density_matrix, xctype="GGA")
    n, grad_n = jnp.array(rho[0]), jnp.array(rho[1:].T)
    distances = np.linalg.norm(points[:, None] - mol.atom_coords(), axis=-1)
    potential = -(mol.atom_charges() / distances).sum(axis=1)
    values = (n, von_weizsaecker(n, grad_n), blyp(n, grad_n), potential * n)
    return [float(kn.integrate(jnp.array(weights), value)) for value in values]


def test_cells_of_all_atoms_share_every_point(molecule):
    water = molecule("H2O")
    adjustment = grid_template((8, 1, 1), 0).size_adjustment
    for atom, position in enumerate(jnp.array(water.positions)):
        cells = becke_cells(jnp.array(water.positions), jnp.array(adjustment), position + 1e-9)
        assert cells[atom] / cells.sum() == pytest.approx(1.0, abs=1e-12)


def test_weights_differentiate_with_respect_to_nuclear_positions(molecule):
    water = molecule("H2O")

    def electrons(positions):
        grid = molecular_grid(kn.Molecule(water.charges, positions), 1)
        return kn.integrate(grid.weights, jnp.exp(-jnp.sum(grid.points**2, axis=1)))

    gradient = jax.grad(electrons)(jnp.array(water.positions))
    h = 1e-4
    for atom, axis in [(0, 2), (1, 1), (2, 0)]:
        shift = np.zeros((3, 3))
        shift[atom, axis] = h
        plus, minus = (electrons(jnp.array(water.positions + s)) for s in (shift, -shift))
        assert gradient[atom, axis] == pytest.approx(float((plus - minus) / (2 * h)), abs=1e-7)


def test_translation_moves_the_points_and_keeps_the_weights(molecule):
    water, shift = molecule("H2O"), np.array([0.3, -1.0, 2.0])
    moved = kn.Molecule(water.charges, water.positions + shift)
    first, second = molecular_grid(water, 1), molecular_grid(moved, 1)
    np.testing.assert_allclose(second.points, first.points + shift, atol=1e-13)
    np.testing.assert_allclose(second.weights, first.weights, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", list(GEOMETRIES))
def test_padding_has_no_weight_and_costs_an_eighth_at_most(molecule, name):
    grid = molecular_grid(molecule(name), 2)
    template = grid_template(tuple(int(z) for z in molecule(name).charges), 2)
    real = int(np.max(np.nonzero(template.weights))) + 1
    assert len(grid.weights) == bucket_size(real)
    assert real >= len(grid.weights) * 8 / 9
    assert np.all(np.asarray(grid.weights)[real:] == 0)


@pytest.mark.parametrize(("points", "size"), [(1, 1), (15, 15), (16, 16), (17, 18), (10124, 10240)])
def test_bucket_sizes(points, size):
    assert bucket_size(points) == size


def test_geometries_and_molecules_of_one_size_class_share_a_compilation(molecule):
    traces = []

    @jax.jit
    def electrons(grid):
        traces.append(grid.weights.shape)
        return kn.integrate(grid.weights, jnp.exp(-jnp.sum(grid.points**2, axis=1)))

    water = molecule("H2O")
    stretched = kn.Molecule(water.charges, 1.1 * water.positions)
    # HCl (29,336 points) and N2 (29,388) fall into one bucket at level 3.
    for other in (water, stretched, molecule("HCl"), molecule("N2")):
        electrons(molecular_grid(other, 3))
    assert traces == [(36864,), (30720,)]


def test_unknown_level_and_heavy_element_are_refused(molecule):
    with pytest.raises(InputError, match="grid level must be 0 to 5, but is 7"):
        molecular_grid(molecule("He"), 7)
    with pytest.raises(InputError, match="Z = 79"):
        molecular_grid(kn.Molecule.from_string("1\n\nAu 0 0 0", charge=1), 1)
