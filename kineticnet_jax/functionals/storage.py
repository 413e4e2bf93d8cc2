"""Learned functionals as folders: arrays in one file, everything else as JSON beside it."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kineticnet_jax.config import from_mapping
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.domain import Domain
from kineticnet_jax.functionals.learned import LearnedFunctional, Provenance
from kineticnet_jax.functionals.moments import MomentConfig
from kineticnet_jax.nn.config import NetworkConfig
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.moments import MomentNet, MomentNetConfig
from kineticnet_jax.nn.network import KineticNet

FORMAT = "kineticnet_jax functional"
VERSION = 4
NETWORK_VERSION = 2
"""First version in which networks are what they are now."""
DESCRIPTION, ARRAYS = "functional.json", "arrays.npz"


def save_functional(functional: LearnedFunctional, folder: str | Path) -> None:
    """Writes a learned functional to a new folder, completely or not at all.

    Args:
        functional: what to write; operators of a geometry are left out.
        folder: must not exist yet, or hold an older functional, which is then replaced.

    Raises:
        InputError: if the folder cannot be written or holds something else.
    """
    folder = Path(folder)
    check_free(folder)
    arrays = {
        name: np.asarray(array)
        for name, array in _flatten(
            (functional.params, functional.coefficients, functional.domain)
        ).items()
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": type(functional.network).__name__,
        "network": _as_json(functional.network),
        "moments": _as_json(functional.moments),
        "domain": None if functional.domain is None else _as_json(functional.domain.filters),
        "name": functional.name,
        "provenance": dict(functional.provenance.details),
    }
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        temporary.chmod(0o755)
        np.savez(temporary / ARRAYS, **arrays)  # type: ignore[arg-type]
        content["sha256"] = _checksum(temporary / ARRAYS)
        content["fingerprint"] = _fingerprint(content, arrays)
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (temporary / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Finds out before a long calculation whether a functional can be written to a folder.

    Raises:
        InputError: if the folder holds something else, or its parent is missing.
    """
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder}: exists and is no functional; give another folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist")


def read_functional(folder: str | Path) -> LearnedFunctional:
    """Reads a functional written by `save_functional`.

    Raises:
        InputError: if the folder is missing, incomplete, damaged, of a later version, or if its
            arrays do not have the shapes of its configuration.
    """
    folder = Path(folder)
    content = read_description(folder)
    path = folder / ARRAYS
    if not path.is_file():
        raise InputError(f"{folder}: {ARRAYS} is missing; the copy is incomplete")
    if _checksum(path) != content.get("sha256"):
        raise InputError(f"{path}: damaged or truncated (wrong checksum); copy it again")
    if content.get("network") is not None and content["version"] < NETWORK_VERSION:
        raise InputError(
            f"{folder}: its network is that of an earlier version of kineticnet_jax; train it again"
        )
    try:
        architecture = content.get("architecture", NetworkConfig.__name__)
        kind = MomentNetConfig if architecture == MomentNetConfig.__name__ else NetworkConfig
        network, moments = (
            None if content[key] is None else from_mapping(kind, content[key], key)
            for key, kind in (("network", kind), ("moments", MomentConfig))
        )
        domain = content.get("domain")
        filters = None if domain is None else from_mapping(Filters, domain, "domain")
        for config in (network, moments, filters):
            if config is not None:
                config.check()
        details = tuple((name, str(value)) for name, value in content["provenance"].items())
        provenance = Provenance(str(content["name"]), details)
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        known = content.get("fingerprint") == _fingerprint(content, arrays)
        layers = _named_arrays(arrays, "[0]['interactions']") if known else None
        expected = _expected_arrays(network, moments, filters, layers)
        params, coefficients, domain = _unflatten(expected, arrays)
        return LearnedFunctional(network, params, moments, coefficients, provenance, domain)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except (KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: not a functional this version can read ({error!r})") from None


def read_description(folder: Path) -> dict[str, Any]:
    """The JSON part of a functional's folder.

    Raises:
        InputError: if there is none, or it is not ours or of a later version.
    """
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not path.is_file():
        raise InputError(f"{folder}: not a functional, {DESCRIPTION} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a functional of kineticnet_jax")
    if content.get("version", 0) > VERSION:
        raise InputError(
            f"{path}: written by a later version of kineticnet_jax (format {content['version']}, "
            f"this one reads up to {VERSION}); update the package"
        )
    return content


def _as_json(
    config: NetworkConfig | MomentNetConfig | MomentConfig | Filters | None,
) -> dict[str, Any] | None:
    return None if config is None else json.loads(json.dumps(dataclasses.asdict(config)))


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Moves a complete folder to its place; an older functional there goes away last."""
    if not folder.exists():
        os.replace(temporary, folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _flatten(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _expected_arrays(
    network: NetworkConfig | MomentNetConfig | None,
    moments: MomentConfig | None,
    filters: Filters | None,
    layers: dict[str, Any] | None,
) -> Any:
    """Shapes and types of the arrays that belong to a configuration."""
    params = None
    if isinstance(network, MomentNetConfig):
        params = MomentNet(network).shapes()
    elif network is not None:
        params = KineticNet(network).shapes(layers)
    coefficients = None
    if moments is not None:
        coefficients = jax.ShapeDtypeStruct((len(moments.names),), np.float64)
    domain = None
    if filters is not None:
        config = network or moments
        assert config is not None
        domain = Domain.empty(filters, config.elements)
    return params, coefficients, domain


def _fingerprint(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Of a configuration and the shapes that were right for it when the functional was written.

    As long as it is the same, message passing layers need not be traced to know that they are.
    """
    configuration = [content.get(key) for key in ("network", "moments", "domain")]
    shapes = sorted((name, array.shape) for name, array in arrays.items())
    return hashlib.sha256(json.dumps([configuration, shapes]).encode()).hexdigest()


def _named_arrays(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Arrays with names like `prefix['a']['b']` as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            *branches, leaf = name[len(prefix) + 2 : -2].split("']['")
            branch = tree
            for key in branches:
                branch = branch.setdefault(key, {})
            branch[leaf] = array
    return tree


def _unflatten(expected: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Arrays by name as the tree their configuration has.

    Raises:
        InputError: naming the first array that does not fit.
    """
    shapes = _flatten(expected)
    for name in shapes.keys() ^ arrays.keys():
        state = "is missing" if name in shapes else "does not belong to it"
        raise InputError(f"the arrays are those of another configuration: {name} {state}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape.shape:
            raise InputError(
                "the arrays are those of another configuration: "
                f"{name} has shape {arrays[name].shape}, not {shape.shape}"
            )
        if not np.all(np.isfinite(arrays[name])):
            raise InputError(f"{name} holds numbers that are not finite")
    return jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in shapes])
