"""Training: losses against independent ones, resuming, and what goes wrong."""

import dataclasses
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from tiny import DATA, random_functional
from training import CONFIG, rows, to_toml, without_times

import kineticnet_jax as kn
from kineticnet_jax.data.config import config_from_json
from kineticnet_jax.errors import IncompleteError, InputError
from kineticnet_jax.evaluate import sample_errors
from kineticnet_jax.functionals.storage import save_functional
from kineticnet_jax.grid import molecular_grid
from kineticnet_jax.train.checkpoint import Checkpoints
from kineticnet_jax.train.config import NetworkChoice, load_train_config
from kineticnet_jax.train.emphasis import emphasized
from kineticnet_jax.train.folder import RUN
from kineticnet_jax.train.groups import GroupReader
from kineticnet_jax.train.loop import BEST, CHECKPOINTS, LAST, train
from kineticnet_jax.train.loss import validation_errors
from kineticnet_jax.train.metrics import BOTH, METRICS
from kineticnet_jax.train.step import OptimizerSettings, initial_state, make_optimizer


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(CONFIG, kn.Dataset(data), folder)
    return folder


@pytest.mark.parametrize(
    ("target", "inputs", "interactions"), [("total", "density", 0), ("pauli", "gradient", 1)]
)
def test_errors_are_those_of_the_evaluation(data, target, inputs, interactions):
    dataset = kn.Dataset(data).select("validation")
    functional = random_functional(target, inputs, interactions=interactions)
    expected = sample_errors(functional, dataset)
    reader = GroupReader(dataset)
    for geometry, numbers in reader.numbers.items():
        group = reader.read([geometry], np.array([numbers]))
        errors = validation_errors(functional, functional.params, group, "float64")
        chosen = expected.geometry == geometry
        energy = expected.energy[chosen]
        if target == "pauli":
            # The label is then integrated on the grid as well.
            energy = energy - dataset.record(geometry).kinetic_error[numbers]
        np.testing.assert_allclose(errors.energy[0], energy, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(
            errors.potential[0], expected.potential[chosen], rtol=1e-9, atol=1e-15
        )


def test_error_of_the_kinetic_energy_density(data):
    dataset = kn.Dataset(data).select("validation", "He")
    functional = random_functional("total", "density")
    reader = GroupReader(dataset)
    (geometry, numbers), *_ = reader.numbers.items()
    errors = validation_errors(
        functional, functional.params, reader.read([geometry], np.array([numbers])), "float64"
    )
    sample = dataset[0]
    grid = kn.Grid(*(jax.numpy.asarray(x) for x in (sample.points, sample.weights)))
    density = kn.GridDensity(*(jax.numpy.asarray(x) for x in (sample.n, sample.grad_n)))
    molecule = kn.Molecule(dataset.family("He").charges, dataset.record(geometry).positions)
    tau = functional.kinetic_energy_density(molecule, grid, density)
    expected = sample.weights @ np.abs(tau - sample.tau)
    assert errors.tau[0, 0] == pytest.approx(expected, rel=1e-10)


def first_geometry(group):
    """What a group holds of its first geometry."""
    return dataclasses.replace(
        group,
        **{
            name: jax.tree.map(lambda x: x[0], getattr(group, name))
            for name, shared in group._fields(True, False)
            if not shared
        },
    )


def test_stretched_grids(data):
    reader = GroupReader(kn.Dataset(data).select("train", "H2"))
    geometry = reader.dataset.geometries[0]
    numbers = np.array([reader.numbers[geometry][:2]])
    usual = first_geometry(reader.read([geometry], numbers))
    same = first_geometry(reader.read([geometry], numbers, np.ones(1)))
    np.testing.assert_allclose(same.points, usual.points, rtol=1e-12)
    np.testing.assert_allclose(same.weights, usual.weights, rtol=1e-10)
    for factor in (0.8, 1.25):
        other = first_geometry(reader.read([geometry], numbers, np.array([factor])))
        assert np.max(np.abs(other.points - usual.points)) > 0.5
        targets = other.targets()
        np.testing.assert_allclose(targets.tau @ other.weights, targets.energy, atol=1e-4)
        np.testing.assert_allclose(targets.density.n @ other.weights, 2, atol=1e-4)


@pytest.mark.parametrize("stretch", [None, np.array([1.2])])
def test_fresh_labels_are_exact(data, stretch):
    dataset = kn.Dataset(data).select("train", "H2")
    reader = GroupReader(dataset, fresh=True)
    geometry = dataset.geometries[0]
    one = first_geometry(reader.read([geometry], np.array([[7, 8, 9]]), stretch))
    targets = one.targets()
    # Two electrons: T_s is von Weizsäcker's.
    vw = 0.5 * np.sum(np.asarray(targets.grad_psi) ** 2, axis=2) @ np.asarray(one.weights)
    np.testing.assert_allclose(targets.energy, vw, atol=2e-3)
    t = np.asarray(one.density_kinetic_eigenvalues)
    x = np.asarray(targets.x)
    np.testing.assert_allclose(targets.energy, x**2 @ t, rtol=5e-5)
    slope = 2 * x * t
    slope -= x * np.sum(x * slope, axis=1, keepdims=True) / 2
    np.testing.assert_allclose(targets.gradient, slope, atol=2e-3)
    assert len(set(np.asarray(targets.energy).tolist())) == 3
    assert np.all(targets.real)


def test_samples_with_large_errors_are_drawn_more_often(data):
    reader = GroupReader(kn.Dataset(data).select("train", "H2"))
    geometries = reader.families["H2"]
    rng = np.random.default_rng(0)
    errors = {g: rng.exponential(size=len(reader.numbers[g])) for g in geometries}
    mean = np.mean(np.concatenate(list(errors.values())))
    errors[geometries[0]][0] = np.nan
    weights = emphasized(errors, 2.0)
    assert weights[geometries[0]][0] == 1 + 2 * 20
    assert weights[geometries[1]][0] == pytest.approx(1 + 2 * errors[geometries[1]][0] / mean, 0.1)
    sums = np.array([weights[g].sum() for g in geometries])
    drawn = [reader.choose_geometries(rng, "H2", 1, weights)[0] for _ in range(4000)]
    share = np.array([np.mean(np.array(drawn) == g) for g in geometries])
    np.testing.assert_allclose(share, sums / sums.sum(), atol=0.03)
    one = geometries[0]
    drawn = [reader.choose_samples(rng, one, 1, weights)[0] for _ in range(4000)]
    share = np.array([np.mean(np.array(drawn) == number) for number in reader.numbers[one]])
    np.testing.assert_allclose(share, weights[one] / sums[0], atol=0.03)
    assert np.ptp(share) > 0.1
    count = len(geometries) + 1
    assert len(reader.choose_geometries(rng, "H2", count, None)) == count


def test_another_grid_level(data):
    reader = GroupReader(kn.Dataset(data).select("train", "H2"))
    geometry = reader.dataset.geometries[0]
    numbers = np.array([reader.numbers[geometry][:2]])
    one = first_geometry(reader.read([geometry], numbers, None, 2))
    expected = molecular_grid(kn.Molecule(np.array([1, 1]), np.asarray(one.positions)), 2)
    np.testing.assert_allclose(one.points, expected.points, rtol=1e-12)
    np.testing.assert_allclose(one.weights, expected.weights, rtol=1e-10, atol=1e-300)


def test_adam_learns(data, tmp_path):
    settings = OptimizerSettings("adam", 1e-2, warmup=2)
    config = dataclasses.replace(CONFIG, optimizer=settings, steps=20)
    train(config, kn.Dataset(data), tmp_path / "run")
    table = rows(tmp_path / "run")
    assert float(table[-1]["loss"]) < 0.9 * float(table[0]["loss"])


def test_errors_of_the_training_samples_are_measured(run, data):
    assert [path.name for path in sorted(run.glob("errors-*"))] == ["errors-000006.npy"]
    errors = np.load(run / "errors-000006.npy")
    assert len(errors) == len(kn.Dataset(data).select("train", "H2"))
    assert np.all(errors >= 0)
    assert np.ptp(errors) > 0


def test_a_run_learns_and_can_be_used(run, data):
    table = rows(run)
    assert [int(row["step"]) for row in table] == [2, 4, 6, 8, 10, 12]
    assert float(table[-1]["loss"]) < float(table[0]["loss"])
    tables = json.loads((run / BOTH).read_text())
    assert [str(row["loss"]) for row in tables["training"]] == [row["loss"] for row in table]
    assert [row["step"] for row in tables["validation"]] == [4, 8, 12]
    functional = kn.load_functional(run / BEST)
    assert functional.name == "tiny"
    details = dict(functional.provenance.details)
    assert details["xc"] == "blyp"
    assert details["basis"] == "6-31g"
    assert config_from_json(details["data"]) == DATA
    system = kn.prepare(kn.Molecule.from_string("2\n\nH 0 0 0\nH 0 0 0.8"), "6-31g")
    density = kn.initial_density(system, "hcore")
    assert np.isfinite(kn.total_energy(system, functional)(density))


def test_a_training_may_start_from_a_functional(run, data, tmp_path):
    first = kn.load_functional(run / BEST)
    earlier = (*first.provenance.details, ("training before", "{}"), ("steps before", "7"))
    provenance = dataclasses.replace(first.provenance, details=earlier)
    save_functional(dataclasses.replace(first, provenance=provenance), tmp_path / "start")
    still = OptimizerSettings(learning_rate=1e-9)
    start = str(tmp_path / "start")
    config = dataclasses.replace(CONFIG, steps=2, start=start, optimizer=still)
    found = train(config, kn.Dataset(data), tmp_path / "run")
    chex.assert_trees_all_close(found.params, first.params, atol=1e-6)
    before, after = (dict(one.provenance.details) for one in (first, found))
    assert after["training before"] == before["training"] + "\n{}"
    assert after["steps before"] == before["steps"] + ", 7"
    assert json.loads(after["training"])["start"] == "tiny"
    wider = dataclasses.replace(config, network=dataclasses.replace(CONFIG.network, hidden=5))
    for bad, message in ((wider, "has not the network"), ("tf", "has not"), ("nn", "unknown")):
        bad = dataclasses.replace(config, start=bad) if isinstance(bad, str) else bad
        with pytest.raises(InputError, match=message):
            train(bad, kn.Dataset(data), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_new_elements_begin_as_the_nearest_known_ones(run, data, tmp_path):
    first = kn.load_functional(run / BEST)
    known = (1, 20)
    rows = np.arange(2)[:, None, None] + np.zeros(first.params["elements"].shape[1:])
    save_functional(
        dataclasses.replace(
            first,
            network=dataclasses.replace(first.network, elements=known),
            params=first.params | {"elements": rows.astype(np.float32)},
            domain=None,
        ),
        tmp_path / "start",
    )
    still = OptimizerSettings(learning_rate=1e-9)
    config = dataclasses.replace(CONFIG, steps=2, start=str(tmp_path / "start"), optimizer=still)
    found = train(config, kn.Dataset(data), tmp_path / "run")
    assert found.elements == first.elements
    nearest = [int(z > 10) for z in found.elements]
    np.testing.assert_allclose(found.params["elements"], rows[nearest], atol=1e-6)
    chex.assert_trees_all_close(found.params["head"], first.params["head"], atol=1e-6)


def test_killed_run_goes_on_as_if_nothing_had_happened(run, data, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(to_toml(CONFIG))
    assert load_train_config(config) == CONFIG
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "kineticnet_jax", "train", config, "--data", data]
    process = subprocess.Popen([*map(str, command), "--out", str(folder)], start_new_session=True)
    limit = time.monotonic() + 300
    while not ((folder / METRICS).is_file() and len(rows(folder)) >= 3):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train(CONFIG, kn.Dataset(data), folder)
    assert without_times(rows(folder)) == without_times(rows(run))
    first, second = (kn.load_functional(place / BEST).params for place in (run, folder))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_interrupted_run_leaves_its_functional_and_goes_on(run, data, tmp_path):
    def interrupt(progress):
        if progress.step == 6:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(IncompleteError, match=r"functional of step 6 is in .*last"):
        train(CONFIG, kn.Dataset(data), folder, interrupt)
    functional = kn.load_functional(folder / LAST)
    assert dict(functional.provenance.details)["steps"] == "6"
    train(CONFIG, kn.Dataset(data), folder)
    assert without_times(rows(folder)) == without_times(rows(run))


def test_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    read, calls = GroupReader.read, []

    def poisoned(self, geometries, *others):
        group = read(self, geometries, *others)
        calls.append(geometries)
        bad = np.nan if len(calls) == 3 else 1.0
        return dataclasses.replace(group, weights=bad * group.weights)

    monkeypatch.setattr(GroupReader, "read", poisoned)
    with pytest.raises(IncompleteError, match="step 3: the loss or its gradient is not a number"):
        train(CONFIG, kn.Dataset(data), tmp_path / "run")
    with np.load(tmp_path / "run" / "failed_batch.npz") as batch:
        assert np.isfinite(batch["[0].positions"]).all()


def test_settings_younger_than_a_run_have_their_defaults(run, data, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    del content["training"]["start"]
    for family in content["data"]["families"]:
        del family["visited"]
    (folder / RUN).write_text(json.dumps(content), encoding="utf-8")
    found = train(CONFIG, kn.Dataset(data), folder)
    chex.assert_trees_all_equal(found.params, kn.load_functional(run / BEST).params)


def test_other_run_in_the_folder(run, data, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"holds a run with other settings \(training.seed\)"):
        train(dataclasses.replace(CONFIG, seed=1), kn.Dataset(data), run)
    other = kn.Dataset(data)
    monkeypatch.setattr(other, "config", dataclasses.replace(DATA, basis="cc-pvdz"))
    with pytest.raises(InputError, match=r"holds a run with other settings \(data.basis\)"):
        train(CONFIG, other, run)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="exists and holds no run"):
        train(CONFIG, kn.Dataset(data), tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    assert (run / RUN).is_file()


# Orbax leaves writes to be cancelled behind; they are collected here, not in a later test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    settings = OptimizerSettings()
    params = random_functional("total", "density").params
    first = initial_state(settings, make_optimizer(settings, 10), params)
    second = dataclasses.replace(first, step=first.step + 4)
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS)
    checkpoints.save(first)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(IncompleteError, match=r"step 4 could not be written \(.*too large"):
            checkpoints.save(second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(IncompleteError, match=r"step 4 could not be written \(no space left"):
            checkpoints.save(second)
    assert int(Checkpoints(tmp_path / CHECKPOINTS).latest(first).step) == 0
    checkpoints.save(second)
    assert int(Checkpoints(tmp_path / CHECKPOINTS).latest(first).step) == 4
    gc.collect()


def test_damaged_checkpoint(run, data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    largest = max(
        (p for p in (folder / CHECKPOINTS / "12").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(InputError, match="12: damaged or of another network"):
        train(CONFIG, kn.Dataset(data), folder)
    shutil.rmtree(folder / CHECKPOINTS / "12")
    train(CONFIG, kn.Dataset(data), folder)
    assert without_times(rows(folder)) == without_times(rows(run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"checkpoint_every": 3}, "checkpoint_every must be a multiple of log_every"),
        ({"emphasis_every": 3}, "emphasis_every must be a multiple of log_every"),
        ({"samples": 3, "at_a_time": 2}, "at_a_time must divide samples"),
        ({"grid_stretch": 0.8}, "grid_stretch must be from 1 to 1.5"),
        ({"emphasis": -1.0}, "emphasis must be finite and not negative, but is -1"),
        ({"emphasis": np.inf}, "emphasis must be finite and not negative, but is inf"),
        ({"emphasis": 1.0, "source": "fresh"}, "emphasis needs stored samples"),
        ({"grid_levels": {"H2": 7}}, "grid_levels must be 0 to 5, but is 7 for H2"),
        ({"grid_levels": {"H3+": 2}}, "unknown family 'H3\\+'"),
        ({"families": {"H3+": 1}}, "unknown family 'H3\\+'"),
        ({"families": {"H2": 0}}, "geometries of families must be positive"),
        ({"kinds": ("none",)}, "unknown kind of potential 'none'"),
        ({"network": NetworkChoice("large")}, "unknown network size 'large'"),
        ({"network": NetworkChoice("tiny", hidden=0)}, "hidden must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(data, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(CONFIG, **change), kn.Dataset(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
