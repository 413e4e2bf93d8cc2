"""The folder of a training run: new, or that of the same run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from kineticnet_jax.config import from_mapping
from kineticnet_jax.data.config import DataConfig
from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.errors import InputError
from kineticnet_jax.files import write_json
from kineticnet_jax.train.config import TrainConfig
from kineticnet_jax.train.moment_config import MomentTrainConfig

RUN = "run.json"


def prepare_folder(folder: Path, config: TrainConfig | MomentTrainConfig, dataset: Dataset) -> None:
    """Makes the folder of a new run, or checks that it holds this one.

    Args:
        folder: of the run.
        config: what is trained.
        dataset: on what.

    Raises:
        InputError: if the folder holds another run or something else, or cannot be made.
    """
    content = {
        "format": "kineticnet_jax run",
        "training": dataclasses.asdict(config),
        "data": dataclasses.asdict(dataset.config),
    }
    content = json.loads(json.dumps(content))
    place = folder / RUN
    if place.is_file():
        try:
            known = json.loads(place.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{place}: damaged ({error}); give another folder") from None
        different = _differences(_completed(known, type(config)), content)
        if different:
            raise InputError(
                f"{folder}: holds a run with other settings ({', '.join(different)}); "
                "give another folder"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: exists and holds no run; give another folder")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None
    write_json(place, content)


def _completed(known: Any, training: type) -> dict[str, Any]:
    """What a run was begun with; settings that are younger than the run have their defaults."""
    content = known if isinstance(known, dict) else {}
    for name, kind in (("training", training), ("data", DataConfig)):
        if isinstance(content.get(name), dict):
            try:
                config = from_mapping(kind, content[name], RUN)
            except InputError:  # a run of another kind
                content[name] = None
                continue
            content[name] = json.loads(json.dumps(dataclasses.asdict(config)))
    return content


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the settings that differ, such as "data.basis"."""
    names = []
    for key in second:
        a, b = first.get(key), second[key]
        if isinstance(a, dict) and isinstance(b, dict):
            names += [f"{key}.{name}" for name in _differences(a, b)]
        elif a != b:
            names.append(key)
    return names
