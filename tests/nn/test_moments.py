"""Moment networks: symmetries, derivatives, padding, storage, and what they are not asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.functionals.storage import read_functional, save_functional
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.moments import (
    BARRIER,
    MomentNet,
    MomentNetConfig,
    barrier,
    by_element,
    channel_squares,
    density_moments,
)
from kineticnet_jax.nn.neighbors import all_neighbors

CONFIG = MomentNetConfig(
    (1, 8), filters=Filters((5, 4, 3, 2), last=100.0, cutoff=9.0), channels=6, hidden=5
)


def make_functional(config=CONFIG, seed=1):
    """Random in all of its parameters, with an energy between its bounds."""
    random = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape) * 0.2, MomentNet(config).shapes()
    )
    usual = {"usual": np.abs(params["usual"]) + 1, "limit": np.abs(params["limit"]) + 0.5}
    return LearnedFunctional(config, params | usual | {"bias": params["bias"] + 3.0})


def density_of(molecule, points):
    """Gaussians on the nuclei, one of them off-centre so that nothing is symmetric."""
    centres = np.asarray(molecule.positions) + np.linspace(0, 0.3, len(molecule.charges))[:, None]
    squares = jnp.sum((points[:, None] - centres) ** 2, axis=-1)
    return jnp.exp(-squares) @ jnp.asarray(molecule.charges, dtype=float)


@pytest.fixture(scope="module")
def water():
    from conftest import make_system

    system = make_system("H2O", "cc-pvdz", None, 1)
    n = density_of(system.molecule, system.grid.points)
    return system, kn.GridDensity(n, jnp.zeros((len(n), 3)))


def moved(system, matrix, shift):
    molecule = kn.Molecule(system.molecule.charges, system.molecule.positions @ matrix.T + shift)
    return molecule, kn.Grid(system.grid.points @ matrix.T + shift, system.grid.weights)


@pytest.mark.parametrize("reflected", [False, True])
def test_invariant_under_rotation_reflection_and_translation(water, reflected):
    system, density = water
    functional = make_functional()
    matrix = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix() * (-1 if reflected else 1)
    expected = functional.remainder(system.molecule, system.grid, density)
    found = functional.remainder(*moved(system, matrix, np.array([1.0, -2.0, 0.5])), density)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_invariant_under_permutation_and_padding(water):
    system, density = water
    functional = make_functional()
    expected = functional.remainder(system.molecule, system.grid, density)
    order = [2, 0, 1]
    charges, positions = np.asarray(system.molecule.charges), np.asarray(system.molecule.positions)
    permuted = kn.Molecule(charges[order], positions[order])
    padded = kn.Molecule(np.append(charges, 0), np.vstack([positions, positions[:1]]))
    for molecule in (permuted, padded):
        functional_there = functional
        if molecule is padded:  # padding only occurs where charges are not looked at
            compute = jax.jit(
                lambda c, p: functional.remainder(kn.Molecule(c, p), system.grid, density)
            )
            found = compute(padded.charges, padded.positions)
        else:
            found = functional_there.remainder(molecule, system.grid, density)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradient_is_that_of_finite_differences(water):
    system, density = water
    functional = make_functional().bind(system.molecule, system.grid)
    change = density.n * jnp.cos(system.grid.points @ jnp.array([1.0, 2.0, -1.0]))

    def energy(step):
        moved = kn.GridDensity(density.n + step * change, density.grad_n)
        return functional.remainder(system.molecule, system.grid, moved)

    h = 1e-4
    expected = (energy(h) - energy(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(energy)(0.0), expected, rtol=1e-6)


def test_bound_and_unbound_are_the_same(water):
    system, density = water
    functional = make_functional()
    bound = functional.bind(system.molecule, system.grid)
    np.testing.assert_allclose(
        bound.remainder(system.molecule, system.grid, density),
        functional.remainder(system.molecule, system.grid, density),
        rtol=1e-12,
    )


def test_moments_are_integrals(water):
    """Of a Gaussian on a nucleus, by hand."""
    system, _ = water
    config = dataclasses.replace(CONFIG, filters=Filters((2,), 0.5, 2.0, cutoff=50.0))
    positions = jnp.asarray(system.molecule.positions)
    n = 100 * jnp.exp(-2 * jnp.sum((system.grid.points - positions[0]) ** 2, axis=1))
    (found,) = density_moments(config, all_neighbors(3, len(n)), system.grid, positions, n)
    spherical = 1 / np.sqrt(4 * np.pi)
    expected = [
        spherical * 100**power * (np.pi / (2 * power + exponent)) ** 1.5
        for exponent in (0.5, 2.0)
        for power in config.powers
    ]
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=2e-3)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite_where_there_is_nothing(water, value, dtype):
    system, _ = water
    functional = make_functional()
    grid = kn.Grid(system.grid.points.astype(dtype), system.grid.weights.astype(dtype))
    n = jnp.full(len(grid.points), value, dtype)
    zero = jnp.zeros((len(n), 3), dtype)

    def energy(n):
        return functional.remainder(system.molecule, grid, kn.GridDensity(n, zero))

    assert energy(n).dtype == np.float64
    assert jnp.isfinite(energy(n))
    assert jnp.all(jnp.isfinite(jax.grad(energy)(n)))
    assert jnp.all(jnp.isfinite(jax.jvp(jax.grad(energy), (n,), (jnp.ones_like(n),))[1]))


def test_density_in_float32(water):
    """Loses its own rounding only, although moments of neighbouring filters are nearly alike."""
    system, density = water
    network = MomentNet(
        dataclasses.replace(CONFIG, filters=Filters((12, 4), first=0.04, last=1000.0, cutoff=9.0))
    )
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.2, network.shapes())
    # Large and alternating, as those of whitened moments are.
    params["linear"] = 1e3 * np.resize([1.0, -1.0], params["linear"].shape)
    size = len(density.n)
    neighbors = all_neighbors(3, size, size)

    def value_and_slope(dtype):
        grid, sampled = jax.tree.map(lambda leaf: leaf.astype(dtype), (system.grid, density))

        def energy(n):
            density = dataclasses.replace(sampled, n=n)
            return network.apply(params, system.molecule, grid, density, neighbors)

        return jax.value_and_grad(energy)(sampled.n)

    (exact, slope), (rounded, rough) = value_and_slope(np.float64), value_and_slope(np.float32)
    assert rounded.dtype == np.float64
    assert rough.dtype == np.float32
    largest = float(jnp.sum(jnp.abs(slope) * density.n))
    assert abs(float(rounded - exact)) < 1e-8 * largest
    np.testing.assert_allclose(rough, slope, atol=1e-6 * float(jnp.max(jnp.abs(slope))))


def test_float64_is_needed(water):
    system = water[0]
    grid, density = jax.tree.map(lambda leaf: leaf.astype(np.float32), (system.grid, water[1]))
    with jax.enable_x64(False), pytest.raises(InputError, match="needs float64"):
        make_functional().remainder(system.molecule, grid, density)


def test_bounds_hold_for_any_parameters(water):
    system, density = water
    for seed in range(4):
        functional = make_functional(seed=seed)
        params = jax.tree.map(lambda leaf: 30 * leaf, functional.params)
        functional = dataclasses.replace(functional, params=params)
        rest = functional.remainder(system.molecule, system.grid, density)
        largest = kn.load_functional("tf").remainder(system.molecule, system.grid, density)
        assert 0 <= rest <= largest


def test_barrier_rises_beyond_the_limit_only(water):
    system, density = water
    element = np.array([1, 0, 0])
    moments = density_moments(
        CONFIG,
        all_neighbors(3, len(density.n)),
        system.grid,
        jnp.asarray(system.molecule.positions),
        density.n,
    )
    params = make_functional().params
    squares = by_element(channel_squares, params, moments, element)
    q = np.mean(squares / params["usual"][element], axis=1)
    inside = params | {"limit": np.array([q[1:].max(), q[0]])}
    np.testing.assert_array_equal(by_element(barrier, inside, moments, element), 0)
    outside = params | {"limit": np.array([q[1:].max(), q[0] / 3])}
    found = by_element(barrier, outside, moments, element)
    np.testing.assert_allclose(found, [BARRIER * 4, 0, 0], rtol=1e-6)


def test_goes_through_a_file(water, tmp_path):
    system, density = water
    functional = make_functional()
    shapes = MomentNet(CONFIG).shapes()
    params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), functional.params, shapes)
    functional = dataclasses.replace(functional, params=params)
    save_functional(functional, tmp_path / "one")
    again = read_functional(tmp_path / "one")
    assert again.network == CONFIG
    assert again.remainder(system.molecule, system.grid, density) == functional.remainder(
        system.molecule, system.grid, density
    )


def test_it_has_no_energy_density_and_knows_its_elements(water):
    system, density = water
    functional = make_functional()
    with pytest.raises(InputError, match="no kinetic energy density"):
        functional.kinetic_energy_density(system.molecule, system.grid, density)
    with pytest.raises(InputError, match="never seen He"):
        functional.remainder(kn.Molecule(np.array([2]), np.zeros((1, 3))), system.grid, density)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"powers": ()}, "powers must be"),
        ({"powers": (0.1,)}, "powers must be"),
        ({"channels": 0}, "channels must be"),
        ({"hidden": 0}, "hidden must be"),
        ({"elements": ()}, "elements must be"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change).check()
