"""Labels in the Kohn-Sham potentials of densities that an optimization visits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from pyscf import dft

import kineticnet_jax as kn
from kineticnet_jax import reference
from kineticnet_jax.data.config import DataConfig, Family, Limits, SplitFractions
from kineticnet_jax.data.generate import generate_geometry
from kineticnet_jax.data.geometries import draw_geometries
from kineticnet_jax.data.run import generate
from kineticnet_jax.data.visited import visited_orbitals
from kineticnet_jax.errors import InputError
from kineticnet_jax.quadrature import integrate

LIH = Family("LiH", "Li\nH 1 r", 1, {"r": (1.5, 1.7)}, visited="tf+0.2vw")
CONFIG = DataConfig(
    "visited",
    (LIH,),
    potentials_per_geometry=4,
    basis="even-tempered-2.6",
    grid_level=1,
    density_basis="even-tempered-2.0",
    splits=SplitFractions(1.0, 0.0, 0.0),
    limits=Limits(sqrt_fit=0.05, kinetic=0.1),
)


@pytest.fixture(scope="module")
def record():
    return generate_geometry(CONFIG, draw_geometries(CONFIG)[0])


def pyscf_field(positions):
    molecule = kn.Molecule.create(["Li", "H"], positions)
    field = dft.RKS(reference.build_mole(molecule, CONFIG.basis), xc="b88,lyp")
    field.grids.level = 4
    return field


def test_samples_are_ground_states_in_the_potentials_of_visited_densities(record):
    """Against PySCF: the potential of the density, its orbitals, their kinetic energy."""
    assert len(record) == 5
    field = pyscf_field(record.positions)
    overlap, core = field.get_ovlp(), field.get_hcore()
    for i in range(1, 5):
        orbital = record.reference_orbitals[i][:, 0]
        np.testing.assert_allclose(record.reference_orbitals[i][:, 1:], 0)
        assert 2 * orbital @ overlap @ orbital == pytest.approx(4, abs=1e-8)
        matrix = 2 * np.outer(orbital, orbital)
        _, vectors = scipy.linalg.eigh(core + np.asarray(field.get_veff(dm=matrix)), overlap)
        occupied = vectors[:, :2]
        kinetic = 2 * np.vdot(occupied, field.mol.intor("int1e_kin") @ occupied)
        assert record.kinetic_energy[i] == pytest.approx(kinetic, abs=1e-3)
    assert np.ptp(record.kinetic_energy) > 0.05


def test_the_densities_are_those_on_the_way(record):
    """The first of each start is the start itself, and the next ones move on."""
    molecule = kn.Molecule.create(["Li", "H"], record.positions)
    system = kn.prepare(molecule, CONFIG.basis, CONFIG.density_basis, CONFIG.grid_level)
    orbitals = visited_orbitals(CONFIG, LIH, molecule, 4)
    np.testing.assert_allclose(orbitals, record.reference_orbitals[1:, :, 0], atol=1e-6)
    basis = reference.extract_basis(reference.build_mole(molecule, CONFIG.basis))
    densities = [
        kn.OrbitalDensity(molecule.positions, basis, np.sqrt(2) * one[:, None]).on_grid(system)
        for one in orbitals
    ]
    for number, guess in ((0, "sad"), (2, "minao")):
        start = kn.initial_density(system, guess).on_grid(system)
        # What the orbital basis does not hold of the amplitude of the start.
        assert distance(system, densities[number], start) < 0.03
        assert distance(system, densities[number], densities[number + 1]) > 0.03
    assert distance(system, densities[0], densities[2]) > 0.03


def distance(system, first, second):
    change = jnp.abs(first.n - second.n)
    return float(integrate(system.grid.weights, change)) / system.n_electrons


def test_a_data_set_knows_the_potential_of_each_sample(tmp_path):
    generate(CONFIG, tmp_path / "data.h5", workers=1)
    dataset = kn.Dataset(tmp_path / "data.h5")
    geometry = dataset.geometries[0]
    matrices = [np.asarray(dataset.potential(geometry, i).matrix) for i in range(5)]
    field = pyscf_field(dataset.record(geometry).positions)
    grid = dataset.space(geometry).grid
    field.grids.coords, field.grids.weights = np.asarray(grid.points), np.asarray(grid.weights)
    for number, matrix in enumerate(matrices[1:], start=1):
        orbital = dataset.record(geometry).reference_orbitals[number][:, 0]
        veff = np.asarray(field.get_veff(dm=2 * np.outer(orbital, orbital)))
        expected = field.get_hcore() - field.mol.intor("int1e_kin") + veff
        np.testing.assert_allclose(matrix, expected, atol=1e-6)
        assert np.abs(matrix - matrices[0]).max() > 0.01


@pytest.mark.parametrize(
    ("visited", "message"),
    [("nothing", "unknown functional"), ("two-electron", "has never seen F")],
)
def test_functionals_that_cannot_be_used_are_refused_at_once(tmp_path, visited, message):
    family = Family("HF", "F\nH 1 r", 1, {"r": (0.9, 1.0)}, visited=visited)
    with pytest.raises(InputError, match=message):
        generate(dataclasses.replace(CONFIG, families=(family,)), tmp_path / "data.h5")
    assert not (tmp_path / "data.h5.parts").exists()


def test_visited_densities_need_a_number():
    with pytest.raises(InputError, match="potentials_per_geometry of at least 1"):
        dataclasses.replace(CONFIG, potentials_per_geometry=0).check()


def test_visited_densities_have_potentials_of_their_own():
    with pytest.raises(InputError, match="set mode to one-shot"):
        dataclasses.replace(CONFIG, mode="self-consistent").check()
