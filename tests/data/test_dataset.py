"""Data set files: round trip, selections, batches, checks, and what is refused."""

import dataclasses
import json
import shutil

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import write_dataset

import kineticnet_jax as kn
from kineticnet_jax.data import DataConfig, Dataset, Family, PotentialKind
from kineticnet_jax.data import run as run_module
from kineticnet_jax.data.config import MANY_WEAK, Limits
from kineticnet_jax.data.generate import family_record, generate_geometry
from kineticnet_jax.data.geometries import draw_geometries, middle_geometry
from kineticnet_jax.data.labels import ground_state_labels
from kineticnet_jax.data.store import checksum, read_geometry, write_geometry
from kineticnet_jax.data.summary import summarize

CONFIG = DataConfig(
    "small",
    (
        Family("He", "He", 3),
        Family("H2", "H\nH 1 r", 6, {"r": (0.5, 1.5)}),
        Family("HF", "F\nH 1 r", 2, {"r": (0.85, 1.0)}),
    ),
    potentials=(*MANY_WEAK, PotentialKind("matrix", matrix=0.02)),
    potentials_per_geometry=4,
    grid_level=1,
    density_basis="even-tempered-1.8",
    # Grid level 1 is for speed; the default limits are for level 2.
    limits=Limits(kinetic=2e-3),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_dataset(CONFIG, tmp_path_factory.mktemp("data") / "small.h5")


@pytest.fixture(scope="module")
def dataset(path):
    return Dataset(path)


def test_contents(dataset, path):
    assert dataset.families == ("H2", "HF", "He")
    assert dataset.config == CONFIG
    total = sum(len(dataset.record(i)) for i in dataset.geometries)
    assert len(dataset) == total > 40
    assert repr(dataset).startswith("Dataset(")
    assert not run_module.parts_folder(path).exists()
    with h5py.File(path) as file:
        assert json.loads(file.attrs["units"])["geometries/*"]["positions"] == "bohr"
        assert "jax" in json.loads(file.attrs["versions"])


def test_record_survives_the_file(tmp_path):
    record = generate_geometry(CONFIG, draw_geometries(CONFIG)[1])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_geometry(file.create_group("g"), record)
        again = read_geometry(file["g"])
        assert checksum(file["g"]) == file["g"].attrs["checksum"]
    for field in dataclasses.fields(record):
        pair = (jax.tree.leaves(getattr(r, field.name)) for r in (record, again))
        for a, b in zip(*pair, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_sample_integrates_to_its_labels(dataset):
    for index in (0, len(dataset) // 2, len(dataset) - 1):
        sample = dataset[index]
        electrons = {"He": 2, "H2": 2, "HF": 10}[sample.family]
        weights = sample.weights
        assert np.sum(weights * sample.n) == pytest.approx(electrons, abs=1e-4)
        assert np.sum(weights * sample.tau) == pytest.approx(sample.kinetic_energy, abs=2e-3)


def test_labels_can_be_recomputed_from_the_file_alone(dataset):
    """Every kind, from stored parameters: geometry, v_KS and perturbation give the same labels."""
    compute = jax.jit(ground_state_labels)
    kinds = set()
    for geometry in dataset.geometries:
        record = dataset.record(geometry)
        space, potential = dataset.space(geometry), dataset.potential(geometry)
        for i in range(len(record)):
            perturbation = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), record.perturbation)
            labels = compute(space, potential, perturbation)
            assert float(labels.kinetic_energy) == pytest.approx(record.kinetic_energy[i], abs=1e-9)
            np.testing.assert_allclose(
                labels.potential_gradient, record.potential_gradient[i], atol=1e-7
            )
            kinds.add(int(perturbation.kind))
    assert kinds == {-1, 0, 1, 2}


def test_stored_matrices_satisfy_the_orbital_equation(dataset):
    """(T + V)_ai = 0 and orthonormality, from the file alone; V = S C ε Cᵀ S - T."""
    for geometry in dataset.geometries:
        record = dataset.record(geometry)
        for c, energies in zip(record.orbitals, record.orbital_energies, strict=True):
            np.testing.assert_allclose(c.T @ record.overlap @ c, np.eye(len(energies)), atol=1e-9)
            assert np.all(np.diff(energies) >= 0)
        occupied = record.orbitals[0][:, : record.reference_orbitals.shape[2]]
        charges = dataset.family(record.family).charges
        v = record.hartree_matrix[0] + record.xc_matrix[0]
        v = v - np.einsum("a,amn->mn", charges, record.attraction)
        virtual = record.orbitals[0][:, occupied.shape[1] :]
        assert np.abs(virtual.T @ (record.kinetic + v) @ occupied).max() < 1e-7


def test_selections_and_slices(dataset):
    by_split = [dataset.select(split=name) for name in ("train", "validation", "test")]
    assert sum(map(len, by_split)) == len(dataset)
    geometries = [set(part.geometries) for part in by_split]
    assert not geometries[0] & geometries[1]
    assert not geometries[0] & geometries[2]
    ground = dataset.select(kind="ground state", family="H2")
    assert {sample.kind for sample in ground} == {"ground state"}
    assert len(ground) == 6
    assert [sample.number for sample in dataset[2:5]] == [dataset[i].number for i in (2, 3, 4)]
    for wrong in ({"split": "tets"}, {"family": "h2"}, {"kind": "weakest"}):
        with pytest.raises(kn.InputError, match="unknown"):
            dataset.select(**wrong)


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_cover_everything_once(dataset, seed):
    energies, shapes = [], set()
    for batch in dataset.batches(5, seed=seed):
        assert len(batch.real) == 5
        energies += list(batch.kinetic_energy[batch.real])
        shapes.add(batch.n.shape)
        tau = np.sum(batch.weights * batch.tau, axis=1)
        np.testing.assert_allclose(tau, batch.kinetic_energy, atol=2e-3)
        np.testing.assert_array_equal(batch.charges > 0, batch.charges != 0)
    np.testing.assert_allclose(sorted(energies), sorted(dataset.kinetic_energies), atol=1e-9)
    assert len(shapes) == 3


def test_batches_are_reproducible_pytrees_in_the_chosen_precision(dataset):
    first, second = (next(dataset.batches(4, seed=7, dtype="float32")) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.n.dtype == np.float32
    totals = jax.jit(jax.vmap(lambda s: jnp.sum(s.weights * s.n)))(first)
    assert np.all(np.abs(totals - np.round(totals)) < 1e-3)
    with pytest.raises(kn.InputError, match="at least 1"):
        next(dataset.batches(0))


def test_summary_counts_what_is_there(dataset, path):
    summary = summarize(path)
    assert summary.samples == len(dataset)
    h2 = next(family for family in summary.families if family.name == "H2")
    assert sum(h2.geometries.values()) == 6
    assert h2.kinetic_energy[0] == dataset.select(family="H2").kinetic_energies.min()
    assert json.loads(json.dumps(summary.as_dict()))["config"]["name"] == "small"


def corrupt(path, action):
    with h5py.File(path, "r+") as file:
        action(file)


def flip(file):
    file["geometries/000001/orbitals"][0, 0, 0] += 1e-12


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (flip, "geometries/000001 is damaged"),
        (lambda file: file.attrs.__setitem__("schema_version", 99), "has schema 99"),
        (lambda file: file.attrs.__delitem__("format"), "not a data set of kineticnet generate"),
        (lambda file: file["geometries/000002"].__delitem__("positions"), "damaged"),
        (lambda file: file["geometries/000002"].attrs.__delitem__("checksum"), "damaged"),
    ],
)
def test_damaged_files_are_refused(path, tmp_path, action, message):
    copy = tmp_path / "copy.h5"
    shutil.copy(path, copy)
    corrupt(copy, action)
    for read in (Dataset, summarize):
        with pytest.raises(kn.InputError) as error:
            read(copy)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_truncated_foreign_and_missing_files_are_refused(path, tmp_path):
    whole = path.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "damaged or incomplete"),
        (b"not HDF5 at all", "not an HDF5 file"),
        (b"", "not an HDF5 file"),
    ):
        broken = tmp_path / "broken.h5"
        broken.write_bytes(content)
        with pytest.raises(kn.InputError, match=message):
            Dataset(broken)
        # Nor is it overwritten.
        with pytest.raises(kn.InputError, match=message):
            run_module.generate(CONFIG, broken)
        assert broken.read_bytes() == content
    with pytest.raises(kn.InputError, match="no such file"):
        Dataset(tmp_path / "none.h5")


def test_a_complete_file_is_left_alone(path):
    before = path.read_bytes()
    run_module.generate(CONFIG, path)
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(kn.InputError, match="generated from another configuration"):
        run_module.generate(other, path)
    assert path.read_bytes() == before


def test_size_of_a_water_geometry(tmp_path):
    """At most 1.5 MB with eight potentials at level 2."""
    family = Family("H2O", "O\nH 1 0.96\nH 1 0.96 2 104.5", 1)
    config = DataConfig(
        "size", (family,), potentials_per_geometry=8, density_basis="even-tempered-1.8"
    )
    _, content, samples = run_module.compute_part(config, draw_geometries(config)[0])
    assert samples == 9
    assert len(content) < 1.5e6


def test_bases_are_checked_before_anything_is_computed(tmp_path):
    config = dataclasses.replace(CONFIG, basis="cc-pvdzz")
    with pytest.raises(kn.InputError, match="unknown basis"):
        run_module.generate(config, tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())
    family = CONFIG.families[0]
    assert family_record(CONFIG, "He", middle_geometry(family)).n_electrons == 2


def test_a_geometry_without_a_reference_is_reported(tmp_path, monkeypatch):
    from kineticnet_jax.errors import ConvergenceError

    def fail(config, task):
        raise ConvergenceError("did not converge")

    config = dataclasses.replace(CONFIG, families=CONFIG.families[:1])
    monkeypatch.setattr(run_module, "generate_geometry", fail)
    path = tmp_path / "x.h5"
    with run_module._parts_folder(path, config) as parts:
        for task in draw_geometries(config):
            index, content, samples = run_module.compute_part(config, task)
            assert samples == 0
            (parts / f"{index:06d}.h5").write_bytes(content)
    run_module.generate(config, path)
    summary = summarize(path)
    assert summary.failures == dict.fromkeys(range(3), "did not converge")
    assert len(Dataset(path)) == 0
    assert list(Dataset(path).batches(2)) == []
