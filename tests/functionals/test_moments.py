"""Features of the reference functional: formulas, invariance, derivatives."""

from dataclasses import replace
from functools import partial

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.kinetic import thomas_fermi
from kineticnet_jax.functionals.moments import MomentConfig, MomentGeometry, moment_features
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.neighbors import all_neighbors, find_neighbors

CONFIG = MomentConfig((1, 8), filters=Filters((4, 3, 2), 0.1, 30.0, cutoff=9.0))

features = jax.jit(moment_features, static_argnums=0)


@pytest.fixture(scope="module")
def water():
    """Water on a coarse grid with a density that has no symmetry."""
    molecule = kn.Molecule.create(
        ["O", "H", "H"], np.array([[0, 0, 0], [1.4, 1.1, 0], [-1.4, 1.2, 0.3]])
    )
    grid = kn.molecular_grid(molecule, 0)
    n = sum(
        z * jnp.exp(-(1 + z / 4) * jnp.linalg.norm(grid.points - r + 0.05, axis=1))
        for z, r in zip(molecule.charges, molecule.positions, strict=True)
    )
    return molecule, grid, kn.GridDensity(n, jnp.zeros((len(n), 3)))


def test_features_are_those_of_the_formulas(water):
    molecule, grid, density = water
    values = dict(zip(CONFIG.names, np.asarray(features(CONFIG, *water)), strict=True))
    w, n = np.asarray(grid.weights), np.asarray(density.n)
    tau = np.asarray(thomas_fermi(density.n, density.grad_n))
    assert values["number of H"] == 2
    assert values["number of O"] == 1
    assert values["T_TF"] == pytest.approx(float(w @ tau), rel=1e-12)
    assert values["∫n^{4/3}"] == pytest.approx(float(w @ n ** (4 / 3)), rel=1e-12)
    alpha = CONFIG.filters.scales
    linear, square = 0.0, 0.0
    for position in molecule.positions[1:]:
        d = np.asarray(grid.points) - position
        r = np.linalg.norm(d, axis=1)
        x = np.minimum((r / 9.0) ** 2, 1)
        u = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
        linear += w @ (tau * u * np.exp(-alpha[2] * r**2)) / np.sqrt(4 * np.pi)
        y = np.asarray(
            e3nn.spherical_harmonics("2e", jnp.asarray(d), False, normalization="integral").array
        )
        moments = [(w * n * u * alpha[k] * np.exp(-alpha[k] * r**2)) @ y for k in (0, 1)]
        square += moments[0] @ moments[1]
    assert values["H ∫g_2 τ_TF"] == pytest.approx(float(linear), rel=1e-10)
    assert values["H F_02·F_12"] == pytest.approx(float(square), rel=1e-9)


def test_features_are_invariant(water):
    molecule, grid, density = water
    expected = np.asarray(features(CONFIG, *water))
    matrix = -Rotation.random(random_state=1).as_matrix()
    shift = np.array([0.3, -2.0, 1.0])
    order = np.array([2, 0, 1])
    moved = kn.Molecule(molecule.charges[order], (molecule.positions @ matrix.T + shift)[order])
    points = kn.Grid(grid.points @ matrix.T + shift, grid.weights)
    np.testing.assert_allclose(features(CONFIG, moved, points, density), expected, rtol=1e-10)


def test_neighbors_operators_and_padding_change_nothing(water):
    molecule, grid, density = water
    expected = np.asarray(features(CONFIG, *water))
    neighbors = all_neighbors(3, len(density.n), 500)
    stored = MomentGeometry.build(CONFIG, neighbors, molecule, grid)
    near = MomentGeometry(find_neighbors(molecule.positions, grid.points, 9.0, 200))
    for geometry in (stored, near):
        np.testing.assert_allclose(features(CONFIG, *water, geometry), expected, rtol=1e-11)
    padded = kn.Molecule(
        np.append(molecule.charges, 0), np.append(molecule.positions, [[0.0, 0, 0]], axis=0)
    )
    np.testing.assert_allclose(features(CONFIG, padded, grid, density), expected, rtol=1e-11)


def test_derivatives_agree_with_finite_differences_and_are_finite_without_a_density(water):
    molecule, grid, density = water
    change = density.n * jnp.sin(grid.points[:, 0])

    def along(step):
        return features(CONFIG, molecule, grid, replace(density, n=density.n + step * change))

    first = jax.jvp(along, (0.0,), (1.0,))[1]
    numerical = (along(1e-4) - along(-1e-4)) / 2e-4
    np.testing.assert_allclose(first, numerical, rtol=1e-6, atol=1e-8)
    empty = replace(density, n=0 * density.n)
    second = jax.jvp(
        jax.jacrev(lambda n: features(CONFIG, molecule, grid, replace(empty, n=n)).sum()),
        (empty.n,),
        (jnp.ones_like(empty.n),),
    )
    assert all(bool(jnp.all(jnp.isfinite(part))) for part in second)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="ascending nuclear charges"):
        MomentConfig((8, 1)).check()
    with pytest.raises(InputError, match="must not increase with l"):
        MomentConfig((1,), filters=Filters((2, 3))).check()


def test_every_feature_has_a_name():
    shapes = jax.eval_shape(
        partial(moment_features, MomentConfig((1, 6, 8))),
        kn.Molecule(np.array([6, 1]), np.zeros((2, 3))),
        kn.Grid(jnp.zeros((8, 3)), jnp.zeros(8)),
        kn.GridDensity(jnp.zeros(8), jnp.zeros((8, 3))),
    )
    assert shapes.shape == (len(MomentConfig((1, 6, 8)).names),)
