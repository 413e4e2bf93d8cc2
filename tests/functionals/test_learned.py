"""Learned functionals: bounds, geometry operators, density optimization, files."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals import storage
from kineticnet_jax.functionals.base import SplitFunctional
from kineticnet_jax.functionals.learned import LearnedFunctional, Provenance, _bounded
from kineticnet_jax.functionals.moments import MomentConfig
from kineticnet_jax.functionals.storage import read_functional, save_functional
from kineticnet_jax.nn.config import network_config
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.network import KineticNet

MOMENTS = MomentConfig((1,), filters=Filters((4, 2), 0.1, 30.0, cutoff=9.0))


def network(elements=(1,), interactions=0, **changes):
    """Without message passing, which takes most of the time to compile, unless asked for."""
    config = network_config("tiny", elements, interactions=interactions, **changes)
    return LearnedFunctional(network=config, params=KineticNet(config).init(jax.random.key(0)))


def moments(scale=1e-3, **changes):
    config = replace(MOMENTS, **changes)
    coefficients = scale * np.random.default_rng(0).normal(size=len(config.names))
    return LearnedFunctional(moments=config, coefficients=coefficients)


def both():
    part = network(signed=True)
    return replace(moments(), network=part.network, params=part.params)


@pytest.fixture(scope="module")
def h2():
    """Hydrogen on a coarse grid, and a starting density."""
    molecule = kn.Molecule.from_string("2\n\nH 0 0 0\nH 0 0 0.74\n")
    system = kn.prepare(molecule, "cc-pvdz", grid_level=1)
    return system, kn.initial_density(system, "minao")


@pytest.mark.parametrize("make", [network, moments, both])
def test_it_is_a_functional_and_binding_it_to_a_geometry_changes_nothing(make, h2):
    system, density = h2
    functional = make()
    assert isinstance(functional, SplitFunctional)
    sampled = density.on_grid(system)
    call = jax.jit(lambda f, s, d: f(s.molecule, s.grid, d))
    bound = functional.bind(system.molecule, system.grid)
    searched = functional.bind(system.molecule, system.grid, many=False)
    expected = float(call(functional, system, sampled))
    assert float(call(bound, system, sampled)) == pytest.approx(expected, rel=1e-12)
    assert float(call(searched, system, sampled)) == pytest.approx(expected, rel=1e-12)
    analytic = float(kn.kinetic_energy(functional, system, density))
    assert analytic == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("make", [network, both])
def test_density_optimization_and_derivatives(make, h2):
    system, density = h2
    energy = kn.total_energy(system, make())
    direction = jax.random.normal(jax.random.key(1), density.coefficients.shape)

    def along(step):
        return energy(kn.SqrtDensity(density.coefficients + step * direction))

    slope = float(jnp.vdot(jax.grad(energy)(density).coefficients, direction))
    numerical = float(along(1e-5) - along(-1e-5)) / 2e-5
    assert slope == pytest.approx(numerical, rel=1e-6)
    solution = kn.optimize_density(system, make(), max_steps=8)
    assert solution.energy < float(energy(kn.initial_density(system)))


def test_the_same_density_on_the_total_energy_gives_the_potential(h2):
    system, density = h2
    energy, sampled = kn.total_energy(system, network()), density.on_grid(system)
    gradient = jax.grad(energy)(sampled)
    assert gradient.n.shape == sampled.n.shape
    assert bool(jnp.all(jnp.isfinite(gradient.n)))


@given(scale=st.floats(-1e6, 1e6), exponent=st.floats(-30, 10))
@settings(max_examples=30, deadline=None)
def test_bounds_of_the_sum_hold_for_any_coefficients(h2, scale, exponent):
    system, density = h2
    sampled = jax.tree.map(lambda x: x * 10.0**exponent, density.on_grid(system))
    largest = float(kn.load_functional("tf")(system.molecule, system.grid, sampled))
    for target in ("pauli", "total"):
        functional = moments(scale, target=target)
        energy, slope = _energy_and_slope(functional, system, sampled)
        assert energy >= 0
        assert np.all(np.isfinite(slope.n))
        if target == "pauli":
            assert energy <= largest * (1 + 1e-14)


@jax.jit
def _energy_and_slope(functional, system, density):
    return jax.value_and_grad(lambda d: functional.remainder(system.molecule, system.grid, d))(
        density
    )


def test_between_the_bounds_energies_are_not_changed():
    for target in ("pauli", "total"):
        for x in (4e-5, 1e-3, 0.02, 0.3, 0.98):
            bounded = _bounded(jnp.asarray(7 * x), jnp.asarray(7.0), target)
            assert float(bounded) == pytest.approx(7 * x, rel=1e-15)
    # Where T_P is zero: 0.05 mHa for two helium atoms.
    assert 0 < float(_bounded(jnp.asarray(0.0), jnp.asarray(1.0), "pauli")) < 1e-5
    curve = jax.vmap(lambda x: _bounded(x, jnp.asarray(1.0), "pauli"))
    assert bool(jnp.all(jnp.diff(curve(jnp.linspace(-0.2, 1.2, 2801))) >= 0))


@pytest.mark.parametrize(("start", "end"), [(-4e-4, 4e-4), (0.8, 1.2)])
def test_energies_bend_smoothly_towards_a_bound(start, end):
    curve = jax.vmap(lambda x: _bounded(x, jnp.asarray(1.0), "pauli"))
    x = jnp.linspace(start, end, 801)
    second = jax.vmap(jax.grad(jax.grad(lambda x: _bounded(x, jnp.asarray(1.0), "pauli"))))(x)
    assert float(jnp.max(jnp.abs(jnp.diff(second)))) < 0.1 * float(jnp.max(jnp.abs(second)))
    assert bool(jnp.all(jnp.diff(curve(x)) >= 0))
    assert np.ptp(second) > 0


def test_total_has_no_von_weizsaecker_part():
    assert network(target="total").vw_fraction == 0
    assert network().vw_fraction == 1


def test_energy_density_integrates_to_the_energy(h2):
    system, density = h2
    sampled, functional = density.on_grid(system), network()
    tau = functional.kinetic_energy_density(system.molecule, system.grid, sampled)
    energy = functional(system.molecule, system.grid, sampled)
    assert float(kn.integrate(system.grid.weights, tau)) == pytest.approx(float(energy), rel=1e-12)
    with pytest.raises(InputError, match="no kinetic energy density"):
        moments().kinetic_energy_density(system.molecule, system.grid, sampled)


def test_an_element_it_has_never_seen_is_named(molecule):
    water = molecule("H2O")
    grid = kn.molecular_grid(water, 0)
    for functional in (network(), moments()):
        with pytest.raises(InputError, match="never seen O, it knows H"):
            functional.bind(water, grid)


def test_parts_must_fit_together():
    with pytest.raises(InputError, match="needs a network or a reference functional"):
        LearnedFunctional()
    part = network(target="total", signed=True)
    with pytest.raises(InputError, match="differ in target: total and pauli"):
        replace(moments(), network=part.network, params=part.params)
    with pytest.raises(InputError, match="must be signed"):
        replace(moments(), network=network().network, params=network().params)


@pytest.mark.parametrize("make", [partial(network, interactions=1), moments, both])
def test_files_keep_everything(make, tmp_path):
    provenance = Provenance("mine", (("data", "H2"), ("seed", "0")))
    functional = replace(make(), provenance=provenance)
    save_functional(functional, tmp_path / "mine")
    loaded = kn.load_functional(str(tmp_path / "mine"))
    for first, second in zip(jax.tree.leaves(functional), jax.tree.leaves(loaded), strict=True):
        assert np.asarray(first).dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    assert (loaded.network, loaded.moments) == (functional.network, functional.moments)
    assert loaded.provenance == provenance
    save_functional(replace(functional, provenance=Provenance("other")), tmp_path / "mine")
    assert read_functional(tmp_path / "mine").name == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "functional"
    save_functional(network(), folder)
    return folder


def change(folder, **changes):
    path = folder / storage.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    path = folder / storage.ARRAYS
    path.write_bytes(path.read_bytes()[:-100])


def smaller_network(folder):
    content = json.loads((folder / storage.DESCRIPTION).read_text())["network"]
    change(folder, network=content | {"hidden": 8})


DAMAGES = {
    "wrong checksum": truncate,
    "arrays.npz is missing": lambda folder: (folder / storage.ARRAYS).unlink(),
    "functional.json is missing": lambda folder: (folder / storage.DESCRIPTION).unlink(),
    "no such folder": shutil.rmtree,
    "not a functional of kineticnet_jax": lambda folder: change(folder, format="other"),
    "written by a later version": lambda folder: change(folder, version=99),
    "another configuration: .* has shape": smaller_network,
    "another configuration: .* is missing": lambda folder: change(
        folder, moments={"elements": [1]}
    ),
    "unknown key in network 'chanels': did you mean 'channels'": lambda folder: change(
        folder, network={"elements": [1], "chanels": 3}
    ),
    "damaged": lambda folder: (folder / storage.DESCRIPTION).write_text("{"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_and_mismatched_files_are_refused(message, saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    DAMAGES[message](folder)
    with pytest.raises(InputError, match=message) as error:
        read_functional(folder)
    assert "\n" not in str(error.value)


def test_layers_are_traced_only_if_configuration_or_arrays_changed(tmp_path, monkeypatch):
    save_functional(network(interactions=1), tmp_path / "mine")
    traced, shapes = [], KineticNet.shapes

    def counted(self, layers):
        traced.append(layers is None)
        return shapes(self, layers)

    monkeypatch.setattr(KineticNet, "shapes", counted)
    read_functional(tmp_path / "mine")
    with np.load(tmp_path / "mine" / storage.ARRAYS) as stored:
        arrays = dict(stored)
    *_, layer = (name for name in arrays if "interactions" in name)
    np.savez(tmp_path / "mine" / storage.ARRAYS, **arrays | {layer: arrays[layer][..., :1]})
    change(tmp_path / "mine", sha256=storage._checksum(tmp_path / "mine" / storage.ARRAYS))
    with pytest.raises(InputError, match=r"another configuration: .*interactions.* has shape"):
        read_functional(tmp_path / "mine")
    assert traced == [False, True]


def test_a_folder_with_something_else_is_kept(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    with pytest.raises(InputError, match="exists and is no functional"):
        save_functional(moments(), tmp_path / "thesis")
    with pytest.raises(InputError, match="does not exist"):
        save_functional(moments(), tmp_path / "missing" / "functional")
    assert (tmp_path / "thesis" / "chapter").read_text() == "1"


def test_classical_names_with_a_slash_are_no_folders():
    assert kn.load_functional("tf+1/9vw").vw_fraction == pytest.approx(1 / 9)
    with pytest.raises(InputError, match="no such folder"):
        kn.load_functional("runs/mine")
