"""Several devices and several processes train like one."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys

import jax
import pytest
from training import CONFIG, rows, to_toml

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.train.curvature import CurvatureSettings
from kineticnet_jax.train.loop import BEST, CHECKPOINTS, LAST, train
from kineticnet_jax.train.metrics import VALIDATION
from kineticnet_jax.train.processes import LAUNCHERS, join
from kineticnet_jax.train.step import OptimizerSettings

SPREAD = dataclasses.replace(
    CONFIG,
    steps=4,
    optimizer=OptimizerSettings(learning_rate=1e-2, warmup=2),
    families={"H2": 2},
    samples=1,
    log_every=1,
    validate_every=2,
    checkpoint_every=2,
    emphasis_every=2,
    precision="float64",
)
ADAM = dataclasses.replace(SPREAD, optimizer=OptimizerSettings("adam", 1e-2))
CURVED = dataclasses.replace(
    SPREAD,
    steps=2,
    curvature=CurvatureSettings(1.0, 1, geometries=1, directions=2, floor=0.99, goal=1.5, rows=2),
)


@pytest.fixture
def command_line(data, tmp_path):
    """Returns a function that trains by the command line, in so many processes."""

    def run(config, devices=1, processes=1):
        file, folder = tmp_path / "config.toml", tmp_path / "several"
        file.write_text(to_toml(config))
        command = [sys.executable, "-m", "kineticnet_jax", "train", file, "--data", data]
        command += ["--out", folder, "--devices", devices]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        known = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
        }
        started = [
            subprocess.Popen(
                [*map(str, command)],
                env=known | {"JAX_PROCESS_ID": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        try:
            said = [process.communicate(timeout=400) for process in started]
        finally:
            for process in started:
                process.kill()
        return folder, [process.returncode for process in started], said

    return run


def assert_alike(folder, other):
    """Two runs have the same metrics but for rounding, to six digits in the files."""
    for name in ("metrics.csv", VALIDATION):
        for one, two in zip(rows(folder, name), rows(other, name), strict=True):
            for key in set(one) - {"family", "seconds", "samples_per_second"}:
                assert float(one[key]) == pytest.approx(float(two[key]), rel=2e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("config", [ADAM, CURVED], ids=["adam", "gauss-newton"])
def test_two_devices_are_one(data, tmp_path, command_line, config):
    train(config, kn.Dataset(data), tmp_path / "one")
    folder, codes, said = command_line(config, devices=2)
    assert codes == [0], said
    assert_alike(tmp_path / "one", folder)


@pytest.mark.slow
def test_two_processes_are_one_and_one_goes_on(data, tmp_path, command_line):
    train(SPREAD, kn.Dataset(data), tmp_path / "one")
    folder, codes, said = command_line(SPREAD, processes=2)
    assert codes == [0, 0], said
    # Paths are wrapped at the width of a terminal.
    assert f"writtento{folder / BEST}" in "".join(said[0][0].split())
    assert "written to" not in said[1][0]
    assert_alike(tmp_path / "one", folder)
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    } | {"training.png"}
    # The checkpoint of two processes is read by one.
    shutil.rmtree(folder / CHECKPOINTS / "4")
    shutil.rmtree(folder / LAST)
    train(SPREAD, kn.Dataset(data), folder)
    assert_alike(tmp_path / "one", folder)


@pytest.mark.slow
def test_bad_folder_ends_all_processes(tmp_path, command_line):
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "letter.txt").write_text("dear")
    _, codes, said = command_line(SPREAD, processes=2)
    assert 0 not in codes
    assert "exists and holds no run" in said[0][1]
    assert "the first process has stopped" in said[1][1]


def test_counts_that_devices_do_not_divide(command_line):
    config = dataclasses.replace(SPREAD, families={"H2": 3})
    _, codes, said = command_line(config, devices=2)
    assert codes == [2], said
    assert "geometries of H2 in a step must be a multiple of the 2 devices, but are 3" in said[0][1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        # A job, but not started by srun: one process.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, (4, 3)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, (2, 0)),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, (2, 1)),
    ],
)
def test_processes_meet_if_there_are_several(monkeypatch, environment, expected):
    met = []

    def initialize(num_processes, process_id, **_):
        met.append((num_processes, process_id))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name in (*LAUNCHERS, *LAUNCHERS.values()):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join()
    assert met == ([] if expected is None else [expected])


def test_processes_that_do_not_know_their_number(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES is 2, but the processes do not find"):
        join()
