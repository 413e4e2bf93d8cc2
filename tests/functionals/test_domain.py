"""Domains: what is recognised as unlike the training, symmetry, storage, the warning."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tiny import NETWORK, random_functional

import kineticnet_jax as kn
from kineticnet_jax.data.domain import training_domain
from kineticnet_jax.functionals.domain import Domain
from kineticnet_jax.functionals.storage import read_functional, save_functional

FILTERS = NETWORK.config((1, 2), "total").filters


@pytest.fixture(scope="module")
def domain(data):
    return training_domain(kn.Dataset(data), ("H2", "He"), FILTERS, (1, 2))


def distances(domain, system, guess="sad"):
    density = kn.initial_density(system, guess).on_grid(system)
    return domain.distances(system.molecule, system.grid, density)


def hydrogen(length, axis=(0, 0, 1)):
    second = " ".join(str(length * x) for x in axis)
    return kn.Molecule.from_string(f"2\n\nH 0 0 0\nH {second}")


def test_densities_of_the_training_are_familiar_and_others_are_not(data, domain):
    dataset = kn.Dataset(data)
    for split, largest in (("train", 0.5), ("validation", 1 + 1e-5)):
        found = []
        for geometry, numbers in dataset.select(split, "H2").by_geometry():
            density, _ = dataset.density(geometry, numbers[0])
            grid, molecule = dataset.space(geometry).grid, dataset.molecule(geometry)
            found.append(np.max(domain.distances(molecule, grid, density)))
        assert np.median(found) < largest
    for length, familiar in ((0.9, True), (0.3, False), (2.5, False)):
        system = kn.prepare(hydrogen(length), "6-31g", grid_level=1)
        exact = kn.reference.kohn_sham(system.molecule, "blyp", "6-31g")
        density = kn.OrbitalDensity.from_kohn_sham(exact).on_grid(system)
        found = domain.distances(system.molecule, system.grid, density)
        assert np.all(found < 1.5) if familiar else np.all(found > 1.5)


def test_distances_do_not_change_under_rotation_and_in_float32(domain):
    axis = Rotation.from_rotvec([0.3, 1.1, -0.4]).apply([0, 0, 1])
    here, there = (kn.prepare(hydrogen(1.6, a), grid_level=3) for a in ((0, 0, 1), axis))
    expected = distances(domain, here)
    np.testing.assert_allclose(distances(domain, there), expected, rtol=0.01)
    np.testing.assert_allclose(expected[0], expected[1], rtol=0.01)
    single = kn.prepare(hydrogen(1.6), grid_level=3, dtype=np.float32)
    np.testing.assert_allclose(distances(domain, single), expected, rtol=0.01)


def test_it_is_known_without_an_element_only_if_all_are(data):
    dataset = kn.Dataset(data)
    assert training_domain(dataset, ("H2",), FILTERS, (1, 2)) is None
    assert isinstance(training_domain(dataset, ("H2",), FILTERS, (1,)), Domain)


def test_it_is_stored(domain, tmp_path):
    functional = random_functional("total", "density", np.float32)
    save_functional(dataclasses.replace(functional, domain=domain), tmp_path / "f")
    again = read_functional(tmp_path / "f").domain
    assert (again.filters, again.elements) == (domain.filters, domain.elements)
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(domain), strict=True):
        np.testing.assert_array_equal(found, expected)
    save_functional(functional, tmp_path / "without")
    assert read_functional(tmp_path / "without").domain is None


def test_solutions_warn(domain):
    functional = random_functional("total", "density", interactions=0)
    functional = dataclasses.replace(functional, domain=domain)
    system = kn.prepare(hydrogen(3.0), "6-31g", grid_level=0)
    solution = kn.optimize_density(system, functional, max_steps=1)
    assert "around H (atom " in solution.reason
    assert "the density is unlike those 'learned' was trained on" in solution.reason
    silent = kn.optimize_density(system, dataclasses.replace(functional, domain=None), max_steps=1)
    assert "trained on" not in silent.reason
