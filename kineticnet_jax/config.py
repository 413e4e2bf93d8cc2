"""Configurations: frozen dataclasses from nested mappings, strictly."""

import dataclasses
import math
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from kineticnet_jax.errors import InputError, unknown_name


def from_mapping(kind: type, content: Any, where: str) -> Any:
    """Builds a dataclass from nested mappings, strictly.

    Args:
        kind: the dataclass.
        content: its fields by name.
        where: what it is part of, for messages.

    Returns:
        An instance of `kind`.

    Raises:
        InputError: for unknown or missing keys and values of a wrong type.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where} must be a table of keys and values, but is {content!r}")
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise unknown_name(f"key in {where}", key, hints)
    for entry in dataclasses.fields(kind):
        required = (
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        )
        if required and entry.name not in content:
            raise InputError(f"{where} needs the key '{entry.name}'")
    return kind(**{key: _convert(hints[key], value, key) for key, value in content.items()})


def load(kind: type, path: Path) -> Any:
    """Reads a dataclass with a method `check` from a TOML file, strictly.

    Args:
        kind: the dataclass.
        path: the file.

    Returns:
        A checked instance of `kind`.

    Raises:
        InputError: naming the file, if it is missing, not TOML, empty, or does not fit.
    """
    content = read_toml(path)
    if not content:
        raise InputError(f"{path}: empty, expected keys and values")
    try:
        config = from_mapping(kind, content, "the configuration")
        config.check()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        InputError: if it is missing, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error})") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the annotated type; lists become tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value not in arguments:
            raise unknown_name(where, str(value), arguments)
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _convert(arguments[0], value, where)
    if origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], item, name) for name, item in value.items()}
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is not ... and len(value) != len(arguments):
            raise InputError(f"'{where}' must have {len(arguments)} entries, but has {len(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is not bool and isinstance(value, bool))
    ):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"'{where}' must be a finite number")
        return value
    name = getattr(origin or hint, "__name__", str(hint))
    expected = {"dict": "table", "tuple": "list", "str": "text"}.get(name, name)
    raise InputError(f"'{where}' must be of type {expected}, but is {value!r}")
