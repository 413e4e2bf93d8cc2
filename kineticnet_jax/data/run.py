"""Generates a data set with many processes; a run that ends early is resumed by the next one.

Every finished geometry is a complete little HDF5 file in a folder beside the data set; the last
step merges them into one file, which appears under its name only when it is complete.
"""

import fcntl
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import jax
import numpy as np

from kineticnet_jax.data.config import SPLITS, DataConfig
from kineticnet_jax.data.generate import family_record, generate_geometry
from kineticnet_jax.data.geometries import GeometryTask, draw_geometries, middle_geometry
from kineticnet_jax.data.store import (
    SCHEMA_VERSION,
    open_data,
    write_family,
    write_geometry,
    write_header,
)
from kineticnet_jax.errors import ConvergenceError, IncompleteError, InputError
from kineticnet_jax.files import check_writable, complete_file

if TYPE_CHECKING:
    from distributed import Client

PACKAGES = ("kineticnet-jax", "jax", "jaxlib", "pyscf", "numpy", "scipy", "h5py")
"""Packages whose versions are stored with a data set."""

TASKS_PER_WORKER = 3
"""Geometries handed to a worker in advance, so that it never waits."""

WORKER_TIMEOUT = 120.0
"""Seconds to wait for the first worker of a cluster."""


# Freed memory stays with a worker: handing arrays of some megabytes back to the system after each
# use, as dask's own setting does, costs a third of the time.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_MMAP_MAX_": "0",
    # Workers import the program that runs, and with it perhaps a package that shows all messages.
    "DASK_LOGGING__DISTRIBUTED": "critical",
}


@dataclass(frozen=True)
class Progress:
    """What a callback of `generate` is told.

    Attributes:
        done: geometries finished, those of earlier runs included.
        total: geometries of the data set.
        resumed: geometries finished by earlier runs.
        samples: samples stored by this run.
    """

    done: int
    total: int
    resumed: int
    samples: int


def generate(
    config: DataConfig,
    path: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> None:
    """Generates a data set, or finishes one that an earlier run began.

    What is stored depends on the configuration alone, not on the number of workers or on how often
    the run was interrupted.

    Args:
        config: the data set.
        path: the HDF5 file. It appears when it is complete; until then finished geometries are
            kept in the folder `PATH.parts`.
        workers: number of local processes, by default one for each processor.
        scheduler: address of a running dask scheduler, whose workers are used instead.
        callback: called with the progress after every geometry.

    Raises:
        InputError: for a configuration that makes no sense, a file that exists and holds something
            else, or another run writing the same file.
        IncompleteError: if a worker fails or the disk is full; the same call goes on from there.
    """
    path = Path(path)
    config.check()
    if workers is not None and workers < 1:
        raise InputError(f"the number of workers must be at least 1, but is {workers}")
    tasks = draw_geometries(config)
    families = {
        family.name: family_record(config, family.name, middle_geometry(family))
        for family in config.families
    }
    if path.exists():
        _check_same(path, config)
        return
    check_writable(path)
    with _parts_folder(path, config) as parts:
        missing = [task for task in tasks if not _part(parts, task.index).exists()]
        if missing:
            with _client(workers, scheduler) as client:
                _compute_all(client, config, missing, len(tasks), parts, callback)
        with (
            _disk_errors(parts, len(tasks)),
            complete_file(path) as temporary,
            h5py.File(temporary, "w") as file,
        ):
            write_header(file, config, _versions())
            for name, record in families.items():
                write_family(file.create_group(f"families/{name}"), record)
            _merge(file, parts, tasks)
        shutil.rmtree(parts)


@contextmanager
def _disk_errors(parts: Path, total: int) -> Iterator[None]:
    """Turns what a full or failing disk causes into one line that says what is kept."""
    try:
        yield
    # HDF5 reports a disk that is full while a file is closed as a RuntimeError.
    except (OSError, RuntimeError) as error:
        finished = len(list(parts.glob("[0-9]*.h5")))
        raise IncompleteError(
            f"the data set cannot be written ({_first_line(error)}); {finished} of {total} "
            f"geometries are kept in {parts}: make room and run the same again"
        ) from None


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def parts_folder(path: Path) -> Path:
    """Where the finished geometries of an unfinished data set are."""
    return path.with_name(path.name + ".parts")


@contextmanager
def _parts_folder(path: Path, config: DataConfig) -> Iterator[Path]:
    """The folder of finished geometries, locked, and checked to belong to the configuration."""
    parts = parts_folder(path)
    parts.mkdir(exist_ok=True)
    lock = os.open(parts / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{path}: another run is writing it; wait, or choose another"
            ) from None
        identity = json.dumps({"schema_version": SCHEMA_VERSION, "config": config.to_json()})
        stamp = parts / "config.json"
        if not stamp.exists():
            with complete_file(stamp) as temporary:
                temporary.write_text(identity, encoding="utf-8")
        elif stamp.read_text(encoding="utf-8") != identity:
            raise InputError(
                f"{path}: an unfinished run with another configuration is in {parts}; finish that "
                "one, delete the folder, or choose another file"
            )
        yield parts
    finally:
        os.close(lock)


def _check_same(path: Path, config: DataConfig) -> None:
    """A complete file of the same configuration is the result; anything else is left alone."""
    with open_data(path) as file:
        same = file.attrs["config"] == config.to_json()
    if not same:
        raise InputError(
            f"{path}: exists and was generated from another configuration; choose another file"
        )


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06d}.h5"


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def _compute_all(
    client: "Client",
    config: DataConfig,
    tasks: list[GeometryTask],
    total: int,
    parts: Path,
    callback: Callable[[Progress], None] | None,
) -> None:
    """Computes all tasks on a cluster and writes each result as it arrives."""
    from distributed import as_completed

    resumed, samples, finished = total - len(tasks), 0, 0
    waiting = iter(tasks)

    def submit(count: int) -> list:
        return [
            client.submit(compute_part, config, task, pure=False) for task in islice(waiting, count)
        ]

    futures = as_completed(submit(TASKS_PER_WORKER * max(1, len(client.ncores()))))
    for future in futures:
        try:
            index, content, count = future.result()
        except Exception as error:  # Whatever a worker raised, or its death.
            kept = resumed + finished
            raise IncompleteError(
                f"a worker failed ({type(error).__name__}: {_first_line(error)}); {kept} "
                f"of {total} geometries are kept in {parts}: run the same again"
            ) from error
        with _disk_errors(parts, total), complete_file(_part(parts, index)) as temporary:
            temporary.write_bytes(content)
        finished, samples = finished + 1, samples + count
        future.release()
        for extra in submit(1):
            futures.add(extra)
        if callback is not None:
            callback(Progress(resumed + finished, total, resumed, samples))


def compute_part(config: DataConfig, task: GeometryTask) -> tuple[int, bytes, int]:
    """One geometry as the bytes of an HDF5 file; a geometry that does not converge as a failure.

    Returns:
        Index of the geometry, content of the file, number of samples in it.
    """
    buffer, samples = io.BytesIO(), 0
    with h5py.File(buffer, "w") as file:
        try:
            record = generate_geometry(config, task)
        except ConvergenceError as error:
            group = file.create_group(f"failures/{task.index:06d}")
            group.attrs.update({"family": task.family, "split": task.split, "reason": str(error)})
            group["positions"] = np.asarray(task.molecule.positions)
        else:
            write_geometry(file.create_group(f"geometries/{task.index:06d}"), record)
            samples = len(record)
    return task.index, buffer.getvalue(), samples


def _merge(file: h5py.File, parts: Path, tasks: list[GeometryTask]) -> None:
    """Copies all parts into one file and lists the geometries of each split."""
    folders = {name: file.create_group(name) for name in ("geometries", "failures")}
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    for task in tasks:
        with h5py.File(_part(parts, task.index), "r") as part:
            for folder, content in part.items():
                part.copy(content[f"{task.index:06d}"], folders[folder])
                if folder == "geometries":
                    splits[task.split].append(task.index)
    for name, indices in splits.items():
        file[f"splits/{name}"] = np.array(indices, dtype=np.int64)


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator["Client"]:
    """A dask client of local processes, or of a running scheduler."""
    # Dask takes most of a second to import, which nothing else needs.
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler} ({error})") from None
        with client:
            _prepare_workers(client, 1)
            yield client
        return
    count = workers or os.cpu_count() or 1
    with dask.config.set({"distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT}):
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        )
        client = Client(cluster)
        try:
            _prepare_workers(client, count)
            yield client
        finally:
            # Dask may raise when it closes while a worker that died is being started again, and
            # that would hide why the run ends.
            for part in (client, cluster):
                with suppress(Exception):
                    part.close()


def _prepare_workers(client: "Client", count: int) -> None:
    client.register_worker_callbacks(
        partial(_use_one_thread, jax.config.values["jax_compilation_cache_dir"])
    )
    try:
        client.wait_for_workers(count, timeout=WORKER_TIMEOUT)
    except TimeoutError:
        raise IncompleteError(
            f"no dask worker appeared within {WORKER_TIMEOUT:.0f} s; start workers and try again"
        ) from None


def _use_one_thread(cache: str | None) -> None:
    """Makes a worker compute on one thread, before it computes anything.

    The sums of a program on several threads depend on their number; and as many workers as
    processors are faster than threads.
    """
    flag = "--xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ["PJRT_NPROC"] = "1"
    jax.config.update("jax_platforms", "cpu")
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
