"""Random external potentials: their form, their distribution, and that they can be recomputed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import gto

from kineticnet_jax.data.config import MANY_WEAK, PotentialKind
from kineticnet_jax.data.potentials import (
    DIPOLE_DISTANCE,
    Perturbation,
    draw_perturbation,
    local_potential,
    random_matrix,
    smooth_potential,
)
from kineticnet_jax.grid import molecular_grid

ALL_KINDS = (
    *MANY_WEAK,
    PotentialKind("field", field=0.02),
    PotentialKind("dipole", dipole=0.5),
    PotentialKind("charges", charge_change=0.1),
    PotentialKind("matrix", matrix=0.05),
)


def draw(molecule, mixture, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    positions = jnp.asarray(molecule.positions)
    return jax.vmap(lambda k: draw_perturbation(k, mixture, molecule.charges, positions))(keys)


def one(batch, i):
    return jax.tree.map(lambda leaf: leaf[i], batch)


def test_default_mixture_has_the_documented_distribution(molecule):
    water = molecule("H2O")
    drawn = draw(water, MANY_WEAK, 4000)
    used = np.asarray(drawn.amplitudes != 0)
    weak = np.asarray(drawn.kind) == 0
    assert weak.mean() == pytest.approx(2 / 3, abs=0.03)
    assert set(used[weak].sum(axis=1)) == {1, 2}
    assert set(used[~weak].sum(axis=1)) == {2, 3, 4, 5}
    logarithms = np.log(np.asarray(drawn.widths)[used])
    assert logarithms.min() >= np.log(0.1)
    assert logarithms.max() <= np.log(3.5)
    assert logarithms.mean() == pytest.approx(0.5 * np.log(0.1 * 3.5), abs=0.05)
    scaled = np.asarray(drawn.amplitudes * drawn.widths)[weak][used[weak]]
    assert (scaled**2).mean() == pytest.approx(np.mean([0.02**2, 0.06**2, 0.15**2]), rel=0.1)
    distances = np.linalg.norm(
        np.asarray(drawn.centres)[:, :, None] - np.asarray(water.positions), axis=-1
    ).min(axis=-1)[used]
    assert (distances < 1e-12).mean() == pytest.approx(0.5, abs=0.03)


def test_every_kind_has_what_it_should_and_nothing_else(molecule):
    drawn = draw(molecule("H2O"), ALL_KINDS, 600)
    parts = {
        "field": np.abs(drawn.field).max(axis=1),
        "dipole": np.abs(drawn.dipole).max(axis=1),
        "charges": np.abs(drawn.charge_change).max(axis=1),
        "matrix": np.asarray(drawn.matrix_strength),
        "weak": np.abs(drawn.amplitudes).max(axis=1),
        "strong": np.abs(drawn.amplitudes).max(axis=1),
    }
    for index, kind in enumerate(ALL_KINDS):
        chosen = np.asarray(drawn.kind) == index
        assert chosen.sum() > 30
        for name, sizes in parts.items():
            gaussian = name in ("weak", "strong") and kind.name in ("weak", "strong")
            assert np.all((sizes[chosen] > 0) == (gaussian or name == kind.name))


def test_potential_is_the_documented_formula(molecule):
    water = molecule("H2O")
    points = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)))
    everything = dataclasses.replace(
        Perturbation.none(3, 2),
        amplitudes=jnp.array([0.3, -0.2]),
        centres=jnp.array([[0.0, 0, 1], [1, 0, 0]]),
        widths=jnp.array([0.5, 2.0]),
        field=jnp.array([0.01, 0.02, -0.03]),
        dipole=jnp.array([0.0, 1.0, 0.5]),
        dipole_position=jnp.array([0.0, 0, 6]),
        charge_change=jnp.array([0.1, 0, -0.2]),
    )
    expected = np.zeros(7)
    for a, c, s in ((0.3, [0, 0, 1], 0.5), (-0.2, [1, 0, 0], 2.0)):
        expected += a * np.exp(-np.sum((points - np.array(c)) ** 2, axis=1) / (2 * s**2))
    expected += points @ np.array([0.01, 0.02, -0.03])
    away = points - np.array([0, 0, 6])
    expected += away @ np.array([0, 1, 0.5]) / (np.sum(away**2, axis=1) + 1) ** 1.5
    smooth = np.array(expected)
    for charge, position in zip((0.1, 0, -0.2), water.positions, strict=True):
        expected = expected - charge / np.linalg.norm(points - position, axis=1)
    np.testing.assert_allclose(smooth_potential(everything, points), smooth, atol=1e-14)
    np.testing.assert_allclose(
        local_potential(everything, water.positions, points), expected, atol=1e-14
    )


def test_quadrature_of_gaussian_potentials_against_pyscf(molecule):
    """Three-centre overlaps, analytically: what a grid makes of a narrow Gaussian off a nucleus."""
    water = molecule("H2O")
    mol = gto.M(
        atom=list(zip(water.symbols, water.positions, strict=True)), unit="B", basis="cc-pvdz"
    )
    errors = {}
    for level in (1, 2, 3):
        grid = molecular_grid(water, level)
        values = mol.eval_gto("GTOval_sph", np.asarray(grid.points))
        for width, centre in ((2.0, [0.3, -0.4, 0.5]), (0.3, [0.2, 0.1, 0.4])):
            single = dataclasses.replace(
                Perturbation.none(3, 1),
                amplitudes=jnp.array([0.1]),
                centres=jnp.array([centre]),
                widths=jnp.array([width]),
            )
            v = np.asarray(smooth_potential(single, grid.points))
            matrix = (values.T * (np.asarray(grid.weights) * v)) @ values
            exponent = 0.5 / width**2
            probe = gto.M(
                atom=[("ghost-H", centre)], unit="B", basis={"ghost-H": [[0, [exponent, 1]]]}
            )
            scale = 0.1 / (gto.gto_norm(0, exponent) * 0.5 / np.sqrt(np.pi))
            both = mol + probe
            shells = (0, mol.nbas, 0, mol.nbas, mol.nbas, both.nbas)
            exact = both.intor("int3c1e", shls_slice=shells)[..., 0] * scale
            errors[level, width] = np.abs(matrix - exact).max()
    assert errors[1, 2.0] < 1e-4
    assert errors[2, 2.0] < 1e-5
    assert errors[2, 0.3] < 2e-3
    assert errors[3, 0.3] < errors[1, 0.3]


def test_random_matrix_is_symmetric_normal_and_fixed_by_its_key(molecule):
    drawn = one(draw(molecule("H2O"), (PotentialKind("matrix", matrix=0.5),), 2), 0)
    matrix = np.asarray(random_matrix(drawn, 60))
    np.testing.assert_array_equal(matrix, matrix.T)
    assert matrix[np.triu_indices(60)].std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(matrix, random_matrix(drawn, 60))


def test_dipole_stands_away_from_its_nucleus(molecule):
    drawn = draw(molecule("He"), (PotentialKind("dipole", dipole=1.0),), 20)
    distances = np.linalg.norm(drawn.dipole_position, axis=1)
    np.testing.assert_allclose(distances, DIPOLE_DISTANCE, rtol=1e-12)
