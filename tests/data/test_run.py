"""Whole runs of `kineticnet generate`: workers, interruption, locks, failures."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import h5py
import jax
import pytest

import kineticnet_jax as kn
from kineticnet_jax.data import Dataset, load_config
from kineticnet_jax.data import run as run_module
from kineticnet_jax.data.store import checksum

CONFIG = """
name = "run"
grid_level = 0
potentials_per_geometry = 2
density_basis = "reference"
[limits]
kinetic = 1.0
electrons = 1.0
[[families]]
name = "H2"
zmatrix = "H\\nH 1 r"
variables = { r = [0.5, 2.5] }
geometries = 24
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the configuration."""
    path = tmp_path_factory.mktemp("runs")
    (path / "config.toml").write_text(CONFIG)
    return path


def start(folder, name, workers=2, config="config.toml", **options):
    command = [sys.executable, "-m", "kineticnet_jax", "generate", config]
    command += ["--out", name, "--workers", str(workers)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    # A user has not set it.
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def kill(process):
    """Kill -9 of the command alone: its workers have to notice by themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def contents(path):
    with h5py.File(path) as file:
        groups = {
            f"{folder}/{name}": checksum(group)
            for folder in ("families", "geometries", "failures")
            for name, group in file[folder].items()
        }
        splits = {name: list(values[()]) for name, values in file["splits"].items()}
        return groups, splits, dict(file.attrs)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The data set of a run with two workers that nothing happens to."""
    code, output, errors = finish(start(folder, "undisturbed.h5"))
    assert code == 0, errors
    assert errors == ""
    for word in ("H2", "train + validation + test", "samples/min", "24/24"):
        assert word in output
    return contents(folder / "undisturbed.h5")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_contents_do_not_depend_on_the_number_of_workers(folder, undisturbed, workers):
    code, _, errors = finish(start(folder, f"workers{workers}.h5", workers))
    assert code == 0, errors
    assert errors == ""
    assert contents(folder / f"workers{workers}.h5") == undisturbed


@pytest.mark.slow
def test_ten_kills_and_a_resume_change_nothing(folder, undisturbed):
    path = folder / "killed.h5"
    generator, finished = random.Random(1), [0]

    def count():
        return len(list(run_module.parts_folder(path).glob("0*.h5")))

    for turn in range(10):
        process = start(folder, path.name, workers=1)
        if turn % 3 == 0:
            # While it starts: imports, workers, compilation.
            time.sleep(generator.uniform(0.5, 6.0))
        else:
            # After some more geometries, and while the file is put together.
            target = count() + generator.randint(1, 5)
            while count() < target and process.poll() is None and not path.exists():
                time.sleep(0.02)
            time.sleep(generator.uniform(0.0, 0.3))
        kill(process)
        assert not path.exists() or contents(path) == undisturbed
        finished.append(24 if path.exists() else count())
        assert finished[-1] >= finished[-2]
    assert max(finished) > 0
    code, _, errors = finish(start(folder, path.name))
    assert code == 0, errors
    assert contents(path) == undisturbed
    assert not run_module.parts_folder(path).exists()
    assert not list(folder.glob(".killed*"))


def test_two_runs_on_one_file_are_refused(folder):
    path = folder / "locked.h5"
    config = load_config(folder / "config.toml")
    with (
        run_module._parts_folder(path, config),
        pytest.raises(kn.InputError, match="another run is writing it"),
    ):
        run_module.generate(config, path)
    assert not path.exists()


def test_an_unfinished_run_of_another_configuration_is_kept(folder):
    path = folder / "other.h5"
    config = load_config(folder / "config.toml")
    with run_module._parts_folder(path, config) as parts:
        (parts / "000000.h5").write_bytes(b"finished")
    (folder / "changed.toml").write_text(CONFIG.replace('"run"', '"run"\nseed = 5'))
    with pytest.raises(kn.InputError, match="an unfinished run with another configuration"):
        run_module.generate(load_config(folder / "changed.toml"), path)
    assert (parts / "000000.h5").read_bytes() == b"finished"


def test_a_full_disk_is_one_line_and_loses_nothing(folder, undisturbed):
    """A limit on the size of files stands for the disk: the merged file does not fit."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    path = folder / "full.h5"
    code, _, errors = finish(start(folder, path.name, preexec_fn=limit))
    assert code == 1
    assert "geometries are kept in" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not path.exists()
    kept = len(list(run_module.parts_folder(path).glob("0*.h5")))
    assert kept == 24
    code, _, errors = finish(start(folder, path.name))
    assert code == 0, errors
    assert contents(path) == undisturbed


@pytest.mark.parametrize(
    ("failure", "message"), [("dies", "KilledWorker"), ("raises", r"ValueError: bad\)")]
)
def test_a_failing_worker_is_one_line(folder, monkeypatch, failure, message):
    def fail(config, task):
        if failure == "dies":
            # As the system ends a process when memory runs out.
            os._exit(9)
        raise ValueError("bad\nluck")

    monkeypatch.setattr(run_module, "compute_part", fail)
    path = folder / "failing.h5"
    with pytest.raises(kn.IncompleteError, match=message) as error:
        run_module.generate(load_config(folder / "config.toml"), path, workers=1)
    assert "\n" not in str(error.value)
    assert "0 of 24 geometries are kept" in str(error.value)
    assert not path.exists()


def listen_to_ctrl_c():
    """Also if the tests run in the background, where a shell switches it off."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_what_is_kept(folder):
    (folder / "long.toml").write_text(CONFIG.replace("24", "1000"))
    process = start(folder, "interrupted.h5", config="long.toml", preexec_fn=listen_to_ctrl_c)
    parts = run_module.parts_folder(folder / "interrupted.h5")
    deadline = time.time() + 120
    while not list(parts.glob("0*.h5")) and time.time() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    code, _, errors = finish(process)
    assert code == 1
    assert "interrupted; finished geometries are kept in interrupted.h5.parts" in errors
    assert len(errors.strip().splitlines()) == 1


def test_bad_number_of_workers_and_unreachable_scheduler(folder):
    config = load_config(folder / "config.toml")
    with pytest.raises(kn.InputError, match="workers must be at least 1"):
        run_module.generate(config, folder / "x.h5", workers=0)
    with pytest.raises(kn.InputError, match="no dask scheduler answers"):
        run_module.generate(config, folder / "x.h5", scheduler="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_a_running_scheduler_is_used(folder, undisturbed):
    from distributed import LocalCluster

    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
        )
        path = folder / "scheduler.h5"
        run_module.generate(
            load_config(folder / "config.toml"), path, scheduler=cluster.scheduler_address
        )
    assert contents(path) == undisturbed
    assert len(Dataset(path)) > 60
