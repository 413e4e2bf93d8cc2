"""Generates a data set with many processes; a run that ends early is resumed by the next one.

Every finished geometry is a complete little HDF5 file in a folder beside the data set; the last
step merges them into one file, which appears under its name only when it is complete.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from kineticnet_jax import cluster
from kineticnet_jax.data.config import SPLITS, DataConfig, config_from_json
from kineticnet_jax.data.generate import family_record, generate_geometry
from kineticnet_jax.data.geometries import GeometryTask, draw_geometries, middle_geometry
from kineticnet_jax.data.store import (
    SCHEMA_VERSION,
    open_data,
    stored_config,
    write_family,
    write_geometry,
    write_header,
)
from kineticnet_jax.data.visited import check_functional
from kineticnet_jax.errors import ConvergenceError, IncompleteError, InputError, first_line
from kineticnet_jax.files import check_writable, complete_file, lock

if TYPE_CHECKING:
    from distributed import Client

PACKAGES = ("kineticnet-jax", "jax", "jaxlib", "pyscf", "numpy", "scipy", "h5py")
"""Packages whose versions are stored with a data set."""


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
    cluster.check_workers(workers)
    tasks = draw_geometries(config)
    middles = {family.name: middle_geometry(family) for family in config.families}
    for family in config.families:
        check_functional(family, middles[family.name])
    families = {name: family_record(config, name, middle) for name, middle in middles.items()}
    if path.exists():
        _check_same(path, config)
        return
    check_writable(path)
    with _parts_folder(path, config) as parts:
        missing = [task for task in tasks if not _part(parts, task.index).exists()]
        if missing:
            with cluster.connect(workers, scheduler) as client:
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
            f"the data set cannot be written ({first_line(error)}); {finished} of {total} "
            f"geometries are kept in {parts}: make room and run the same again"
        ) from None


def parts_folder(path: Path) -> Path:
    """Where the finished geometries of an unfinished data set are."""
    return path.with_name(path.name + ".parts")


@contextmanager
def _parts_folder(path: Path, config: DataConfig) -> Iterator[Path]:
    """The folder of finished geometries, locked, and checked to belong to the configuration."""
    parts = parts_folder(path)
    parts.mkdir(exist_ok=True)
    handle = os.open(parts / "lock", os.O_RDWR | os.O_CREAT)
    try:
        lock(handle, path)
        stamp = parts / "config.json"
        if not stamp.exists():
            identity = {"schema_version": SCHEMA_VERSION, "config": config.to_json()}
            with complete_file(stamp) as temporary:
                temporary.write_text(json.dumps(identity), encoding="utf-8")
        identity = json.loads(stamp.read_text(encoding="utf-8"))
        known = (identity["schema_version"], config_from_json(identity["config"]))
        if known != (SCHEMA_VERSION, config):
            raise InputError(
                f"{path}: an unfinished run with another configuration is in {parts}; finish that "
                "one, delete the folder, or choose another file"
            )
        yield parts
    finally:
        os.close(handle)


def _check_same(path: Path, config: DataConfig) -> None:
    """A complete file of the same configuration is the result; anything else is left alone."""
    with open_data(path) as file:
        same = stored_config(file) == config
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
    resumed, finished, samples = total - len(tasks), 0, 0
    computed = cluster.results(client, compute_part, ((config, task) for task in tasks))
    try:
        for index, content, count in computed:
            with _disk_errors(parts, total), complete_file(_part(parts, index)) as temporary:
                temporary.write_bytes(content)
            finished, samples = finished + 1, samples + count
            if callback is not None:
                callback(Progress(resumed + finished, total, resumed, samples))
    except cluster.WorkerError as error:
        raise IncompleteError(
            f"{error}; {resumed + finished} of {total} geometries are kept in {parts}: run the "
            "same again"
        ) from error


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
