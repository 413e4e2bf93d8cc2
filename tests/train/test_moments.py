"""Training of moment networks: labels, curvatures, and a run that can be stopped."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import rows, to_toml, without_times

import kineticnet_jax as kn
from kineticnet_jax.curvature import energy_hessian
from kineticnet_jax.energy import kinetic_energy, total_energy
from kineticnet_jax.errors import IncompleteError, InputError
from kineticnet_jax.evaluate import kohn_sham_density, sample_errors
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.optimize import density_of, retract, variables
from kineticnet_jax.train import moment_loop
from kineticnet_jax.train.config import load_train_config
from kineticnet_jax.train.metrics import VALIDATION
from kineticnet_jax.train.moment_config import (
    MomentCurvatureSettings,
    MomentNetChoice,
    MomentTrainConfig,
    VisitSettings,
)
from kineticnet_jax.train.moment_curvature import LowCurvatures
from kineticnet_jax.train.moment_loop import chosen, train_moments
from kineticnet_jax.train.moments import SLACK, barrier_limits
from kineticnet_jax.train.visits import Place, Visits, visits

CONFIG = MomentTrainConfig(
    "tiny",
    steps=180,
    target="total",
    moments=MomentNetChoice(Filters((4, 2), last=50.0, cutoff=8.0), channels=4, hidden=4),
    samples=4,
    directions=8,
    learning_rate=0.02,
    warmup=2,
    average=0.5,
    validate_every=60,
    # Everything is too low, so that something is found.
    curvature=MomentCurvatureSettings(
        weight=0.01, first=60, every=60, geometries=2, directions=2, floor=0.99, goal=1.5, rows=2
    ),
    visits=VisitSettings(
        weight=0.1, first=60, every=60, geometries=1, guesses=("minao",), stops=(5, 10), rows=2
    ),
)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments") / "run"
    return folder, train_moments(CONFIG, kn.Dataset(data), folder)


@pytest.fixture(scope="module")
def inside(run, data):
    """The run as it is inside, and parameters of which all matter."""
    inside = moment_loop._Run(CONFIG, kn.Dataset(data), run[0])
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.02 * random.normal(size=leaf.shape), inside._initial()
    )
    return inside, params


def folded(inside, params):
    limits = barrier_limits(inside.network, inside.whitening, inside.labels, params)
    whole = inside.whitening.folded(params) | limits
    whole["bias"] = whole["bias"] + inside.shift
    return kn.functionals.learned.LearnedFunctional(inside.network, whole)


def test_errors_are_those_of_the_evaluation(inside, data):
    """Energies of whitened moments are those of the functional that is written, on the grid."""
    run, params = inside
    functional = folded(run, params)
    for family, known in run.labels.items():
        numbers = np.flatnonzero(known.validation)
        found, _ = run.loss.errors(params, chosen(run.samples, {family: numbers}))[family]
        expected = sample_errors(functional, kn.Dataset(data).select("validation", family))
        np.testing.assert_allclose(1e-3 * found, expected.energy, rtol=1e-3, atol=1e-5)


def test_potentials_are_those_of_the_evaluation(data, tmp_path):
    """In the mean over many directions."""
    config = dataclasses.replace(CONFIG, directions=2000, steps=1, families={"H2": 4})
    run = moment_loop._Run(config, kn.Dataset(data), tmp_path / "run")
    params = run._initial()
    functional = folded(run, params)
    known = run.labels["H2"]
    numbers = np.flatnonzero(known.validation)
    _, residuals = run.loss.errors(params, chosen(run.samples, {"H2": numbers}))["H2"]
    found = 1e-3 * np.sum(np.asarray(residuals) ** 2, axis=1)
    expected = sample_errors(functional, kn.Dataset(data).select("validation", "H2")).potential
    np.testing.assert_allclose(found, expected, rtol=0.15)


def test_progress_of_moments_is_told(inside, data, tmp_path):
    told = []
    config = dataclasses.replace(CONFIG, steps=1)
    train_moments(
        config, kn.Dataset(data), tmp_path / "run", prepared=lambda *now: told.append(now)
    )
    last = dict(told)
    assert last == {name: len(known.energy) for name, known in inside[0].labels.items()}
    assert len(told) > len(last)


def test_training_samples_are_below_the_barrier(inside, data):
    run, params = inside
    limited = folded(run, params)
    infinite = {"limit": np.full_like(limited.params["limit"], np.inf)}
    free = dataclasses.replace(limited, params=limited.params | infinite)
    tight = {"limit": limited.params["limit"] / SLACK * 0.9}
    cut = dataclasses.replace(limited, params=limited.params | tight)
    part = kn.Dataset(data).select("train", "H2")
    energies = [sample_errors(one, part).energy for one in (limited, free, cut)]
    np.testing.assert_array_equal(energies[0], energies[1])
    assert np.any(energies[2] > energies[1])


def test_hessian_is_that_of_the_total_energy(inside, data):
    run, params = inside
    functional = folded(run, params)
    site = next(s for s in run.searches.sites() if s.family == "H2" and s.mixture == 0)
    found, _ = run.searches.curvatures.hessian(params, site)
    system, density = kohn_sham_density(kn.Dataset(data), site.geometry)
    energy = total_energy(system, functional, kn.Dataset(data).config.xc)
    expected = energy_hessian(energy, density)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.max(np.abs(expected)))


def test_geometries_of_an_atom_are_searched_once(inside):
    sites = [site.family for site in inside[0].searches.sites()]
    assert sites.count("He") == len(CONFIG.curvature.mixtures)
    assert sites.count("H2") == CONFIG.curvature.geometries * len(CONFIG.curvature.mixtures)


def test_rows_are_curvatures_along_directions(inside):
    run, params = inside
    site = next(s for s in run.searches.sites() if s.family == "H2" and s.mixture == 1)
    total, _ = run.searches.curvatures.hessian(params, site)
    lowest, directions = run.searches.curvatures.low(params, site, floor=1e6, count=4)
    values = np.linalg.eigvalsh(total)
    assert lowest == pytest.approx(values[0])
    assert directions
    for value, (direction, rest) in zip(values, directions, strict=True):
        if abs(value - 1) < 1e-6:  # no change of the density
            continue
        (cut,) = run.searches.curvatures.cuts(site, direction[None], np.array([rest]))
        cuts = {"H2": jax.tree.map(lambda leaf: np.asarray(leaf)[None], cut)}
        element = {"H2": site.element}
        found = float(run.searches.curvatures.along(params, cuts, element)["H2"][0]) + rest
        np.testing.assert_allclose(found, value, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def visited(inside, data):
    """A geometry, and densities on the way from its ground state to superposed atoms."""
    run, _ = inside
    place = Place.of(run.network, kn.Dataset(data), run.dataset.select("train", "H2").geometries[0])
    system = place.known.system
    atoms = variables(system, kn.initial_density(system, "sad"))
    ways = [density_of(system, place.z + share * (atoms - place.z)) for share in (0.2, 1.0)]
    return place, ways, visits(run.network, run.whitening, place, ways, 0.3)


def test_bounds_hold_for_the_exact_functional(visited):
    """T_s of two electrons is T_vW: the energy is above the bound, and so is its slope."""
    place, ways, found = visited
    system = place.known.system
    whole = total_energy(system, "vw", place.known.xc)
    ground = variables(system, ways[0])
    assert np.all(found.distance > 0.01)
    for row, density in enumerate(ways):
        exact = float(kinetic_energy(kn.load_functional("vw"), system, density))
        assert exact > found.bounds.energy[row]
        # By finite differences of the total energy.
        z = variables(system, density)
        away = (z - place.z) / found.distance[row]

        def energy(step, z=z, away=away):
            return float(whole(density_of(system, retract(system, z + step * away))))

        slope = (energy(1e-4) - energy(-1e-4)) / 2e-4
        known = float(place.known(density))
        assert found.bounds.energy[row] + known == pytest.approx(place.energy, abs=1e-9)
        assert found.known[row] == pytest.approx(
            known - float(place.known(density_of(system, place.z))), abs=1e-9
        )
        rest = (
            float(place.known(density_of(system, retract(system, z + 1e-4 * away))))
            - float(place.known(density_of(system, retract(system, z - 1e-4 * away))))
        ) / 2e-4
        assert found.bounds.slope[row] == pytest.approx(0.3 * found.distance[row] - rest, abs=1e-6)
        assert slope - rest > found.bounds.slope[row]
        # At the ground state the total energy of the exact functional is stationary.
        first, last = (
            float(place.known(density_of(system, retract(system, place.z + step * away))))
            for step in (-1e-4, 1e-4)
        )
        assert found.bounds.ground_slope[row] == pytest.approx(-(last - first) / 2e-4, abs=2e-3)
    # √n describes the ground state: its energy is above that from orbitals, by little.
    described = density_of(system, place.z)
    learned = place.energy - float(place.known(described))
    np.testing.assert_allclose(found.bounds.ground_energy, learned, rtol=0, atol=1e-9)
    exact = float(kinetic_energy(kn.load_functional("vw"), system, described))
    assert 0 < exact - learned < 1e-3
    # Half of the squared distance is what rapid changes cost: the curvature is one at most.
    assert np.linalg.norm(ground - place.z) * 2**0.5 == pytest.approx(found.distance[0], rel=1e-6)


def test_no_way_leads_to_the_ground_state_itself(inside, visited):
    run, _ = inside
    place, _, _ = visited
    ground = density_of(place.known.system, place.z)
    found = visits(run.network, run.whitening, place, [ground], 0.3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    np.testing.assert_allclose(found.bounds.energy, found.bounds.ground_energy, atol=1e-9)


def test_what_is_missing_at_visited_densities(inside, visited):
    """What training sees is what the written functional does on the grid."""
    run, params = inside
    functional = folded(run, params)
    place, ways, found = visited
    system, shift = place.known.system, np.sum(run.shift[place.element])
    bounds = found.bounds.relative_to(shift).in_float32()
    missing = run.loss.missing(params, {place.family: bounds})[place.family]
    for row, density in enumerate(ways):
        visited_z = variables(system, density)
        away = (visited_z - place.z) / found.distance[row]

        def energy(step, z=visited_z, away=away):
            moved = density_of(system, retract(system, z + step * away))
            return float(kinetic_energy(functional, system, moved))

        below = min(energy(0.0) - found.bounds.energy[row], 0)
        slope = (energy(1e-4) - energy(-1e-4)) / 2e-4
        down = min(slope - found.bounds.slope[row], 0)
        start = (energy(1e-4, place.z, away) - energy(-1e-4, place.z, away)) / 2e-4
        off = start - found.bounds.ground_slope[row]
        ground = energy(0.0, place.z) - found.bounds.ground_energy[row]
        expected = (below**2 + ground**2) * 1e6 + (down**2 + off**2) / 2 * 1e3
        assert missing[row] == pytest.approx(expected, rel=2e-3, abs=1e-3)
    assert np.any(missing > 1)


def test_visited_densities_become_bounds(run, inside):
    folder, _ = run
    whole, _ = inside
    place = folder / "visits-000060-H2.npz"
    found = Visits.read(place, whole.network)
    assert set(found.geometry) < set(whole.dataset.select("train", "H2").geometries)
    other = Visits.read(folder / "visits-000120-H2.npz", whole.network)
    assert set(other.geometry) != set(found.geometry)


def test_share_of_ground_states_without_external_potential(inside, monkeypatch):
    run, _ = inside
    known = run.labels["H2"]
    plain = known.energy[known.unperturbed & ~known.validation].astype(np.float32)
    assert 0 < len(plain) < np.sum(~known.validation)
    for share, least in ((0.5, 2), (1.0, 4)):
        monkeypatch.setattr(run, "config", dataclasses.replace(CONFIG, unperturbed=share))
        _, _, energies, _ = chosen(run.samples, run._drawn(0))["H2"]
        assert len(energies) == 4
        assert np.sum(np.isin(energies, plain)) >= least


def test_a_run_learns_and_can_be_used(run, inside, data):
    folder, functional = run
    run, _ = inside
    for row in rows(folder, VALIDATION)[-len(run.counts) :]:
        before = run._validate(row["family"], run._initial())
        found = float(row["energy"]) + float(row["median"])
        assert found < 0.4 * (before["energy"] + before["median"])
    assert functional.domain is not None
    system = kn.prepare(kn.Dataset(data).molecule(0), "6-31g", grid_level=1)
    assert jnp.isfinite(kn.kinetic_energy(functional, system, kn.initial_density(system)))
    assert dict(functional.provenance.details)["steps"] == "180"


def test_killed_run_goes_on_as_if_nothing_had_happened(run, data, tmp_path, monkeypatch):
    """Killed between two checkpoints, and before the last functional is written."""
    folder = tmp_path / "run"

    def kill(progress):
        if progress.step == 120:
            raise RuntimeError("killed")

    def kill_at_the_end(*_):
        raise RuntimeError("killed at the end")

    with pytest.raises(RuntimeError, match="killed"):
        train_moments(CONFIG, kn.Dataset(data), folder, kill)
    with monkeypatch.context() as patch:
        patch.setattr(moment_loop, "training_domain", kill_at_the_end)
        with pytest.raises(RuntimeError, match="killed at the end"):
            train_moments(CONFIG, kn.Dataset(data), folder)
    again = train_moments(CONFIG, kn.Dataset(data), folder)
    for name in (VALIDATION, "metrics.csv"):
        assert without_times(rows(folder, name)) == without_times(rows(run[0], name))
    jax.tree.map(np.testing.assert_array_equal, again.params, run[1].params)


@pytest.mark.parametrize("name", ["labels-H2.npz", "curvatures-000060.npz"])
def test_damaged_file_of_a_run(run, data, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"{name}: damaged; delete it"):
        train_moments(CONFIG, kn.Dataset(data), folder)
    (folder / name).unlink()
    again = train_moments(CONFIG, kn.Dataset(data), folder)
    jax.tree.map(np.testing.assert_array_equal, again.params, run[1].params)


def test_labels_of_another_version(run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    with np.load(run[0] / "labels-H2.npz") as stored:
        kept = {name: stored[name] for name in stored if name != "unperturbed"}
    np.savez(folder / "labels-H2.npz", **kept)
    with pytest.raises(InputError, match=r"has no unperturbed; delete it"):
        train_moments(CONFIG, kn.Dataset(data), folder)


def test_searches_of_another_version(run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    found = LowCurvatures.read(folder / "curvatures-000060.npz")
    longer = dataclasses.replace(found, lowest=np.append(found.lowest, 0.0))
    longer.write(folder / "curvatures-000060.npz")
    with pytest.raises(InputError, match=r"000060.npz: of another version, .*; delete it"):
        train_moments(CONFIG, kn.Dataset(data), folder)


def test_interrupted_run_says_how_to_go_on(data, tmp_path):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(IncompleteError, match="same command again"):
        train_moments(CONFIG, kn.Dataset(data), tmp_path / "run", interrupt)


def test_configuration_is_read_from_its_file(tmp_path):
    (tmp_path / "moments.toml").write_text(to_toml(CONFIG))
    assert load_train_config(tmp_path / "moments.toml") == CONFIG


def test_other_run_in_the_folder(run, data):
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(InputError, match=r"other settings \(training.seed\)"):
        train_moments(other, kn.Dataset(data), run[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"directions": 0}, "directions must be"),
        ({"kappa": 0.0}, "kappa must be"),
        ({"average": 1.0}, "average must be"),
        ({"unperturbed": 1.5}, "unperturbed must be"),
        ({"families": {"H2": 0}}, "samples of families"),
        ({"families": {"H2O": 1}}, "unknown family"),
        ({"curvature": MomentCurvatureSettings(floor=0.5, goal=0.1)}, "floor of the curvature"),
        ({"curvature": MomentCurvatureSettings(mixtures=(2.0,))}, "mixtures must be"),
        ({"moments": MomentNetChoice(channels=0)}, "channels must be"),
        ({"visits": VisitSettings(weight=-1.0)}, "weight of visits must not"),
        ({"visits": VisitSettings(every=0)}, "every of visits must"),
        ({"visits": VisitSettings(stops=())}, "stops of visits must"),
        ({"visits": VisitSettings(guesses=())}, "guesses of visits must"),
        ({"visits": VisitSettings(guesses=("sda",))}, "unknown guess"),
    ],
)
def test_settings_that_make_no_sense(data, tmp_path, change, message):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(InputError, match=message):
        train_moments(config, kn.Dataset(data), tmp_path / "run")
