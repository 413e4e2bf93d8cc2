"""Output files that are either complete or not there, and locks on those that are written."""

import fcntl
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from kineticnet_jax.errors import InputError


def check_writable(path: Path) -> None:
    """Finds out before a long calculation whether its result can be written.

    Raises:
        InputError: if the path is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, give a file name")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    os.close(handle)
    os.unlink(name)


def lock(file: int | IO, path: Path) -> None:
    """Locks an open file until it is closed.

    Args:
        file: the file, or its descriptor.
        path: of what it stands for.

    Raises:
        InputError: if another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another run is writing it; wait, or choose another") from None


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends without an error.

    Args:
        path: where the complete file goes; its suffix is kept.

    Yields:
        The path to write to.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, completely or not at all; what is not a finite number becomes null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    with complete_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as an npz file, completely or not at all; its suffix may be another one."""
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a file of `write_arrays` that the same command can make again.

    Args:
        path: of the file.
        names: of the arrays.

    Raises:
        InputError: if it is damaged, or an earlier version wrote it without one of them.
    """
    again = "delete it and give the same command again"
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in names if name in stored}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path}: damaged; {again}") from None
    for name in names:
        if name not in arrays:
            raise InputError(f"{path}: of another version, has no {name}; {again}")
    return arrays
