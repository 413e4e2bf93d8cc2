"""The command line: `kineticnet optimize`, `generate`, `fit`, `train`, `evaluate`, `info`."""

import gc
import logging
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, subcommand

import kineticnet_jax as kn
from kineticnet_jax import cli_data, cli_functionals, cli_optimize, cli_train, reference
from kineticnet_jax.cli_optimize import BAD_INPUT, DONE, INTERRUPTED, NOT_CONVERGED
from kineticnet_jax.energy import NO_XC
from kineticnet_jax.files import check_writable, write_json
from kineticnet_jax.functionals.registry import FUNCTIONALS, PRETRAINED
from kineticnet_jax.functionals.xc import XC_FUNCTIONALS
from kineticnet_jax.system import DENSITY_BASES


@dataclass(frozen=True)
class Info:
    """Print what a data set or a learned functional is.

    Without one: versions, devices, functionals and bases.
    """

    file: Positional[Path | None] = None
    """HDF5 file of a data set, name of a pretrained functional or folder of a learned one."""
    json: Path | None = None
    """Write the same to this JSON file."""


FEW_COLLECTIONS = 100_000, 50, 50
"""Objects made before garbage is looked for, and how many times before older ones are."""

Command = (
    Annotated[cli_optimize.Optimize, subcommand("optimize")]
    | Annotated[cli_data.Generate, subcommand("generate")]
    | Annotated[cli_functionals.FitCommand, subcommand("fit")]
    | Annotated[cli_train.TrainCommand, subcommand("train")]
    | Annotated[cli_train.EvaluateCommand, subcommand("evaluate")]
    | Annotated[Info, subcommand("info")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `kineticnet`; ends the process with the exit code of the command."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    # Orbax logs the traceback of a failed write, which is reported in one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    command = tyro.cli(
        Command,
        prog="kineticnet",
        description=kn.__doc__,
        args=arguments,
        config=(FlagCreatePairsOff,),
    )
    _configure_jax()
    console = Console()
    try:
        code = DONE
        if isinstance(command, cli_optimize.Optimize):
            code = cli_optimize.optimize(command, console)
        elif isinstance(command, cli_data.Generate):
            cli_data.generate(command, console)
        elif isinstance(command, cli_functionals.FitCommand):
            cli_functionals.fit(command, console)
        elif isinstance(command, cli_train.TrainCommand):
            cli_train.train_command(command, console)
        elif isinstance(command, cli_train.EvaluateCommand):
            cli_train.evaluate_command(command, console)
        elif command.file is not None:
            place = PRETRAINED.get(str(command.file), command.file)
            part = cli_functionals if place.is_dir() else cli_data
            part.info(place, command.json, console)
        else:
            _info(command, console)
    except kn.InputError as error:
        print(f"kineticnet: {error}", file=sys.stderr)
        code = BAD_INPUT
    except (kn.ConvergenceError, kn.IncompleteError) as error:
        print(f"kineticnet: {error}", file=sys.stderr)
        code = NOT_CONVERGED
    except OSError as error:
        print(f"kineticnet: a result could not be written: {error}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("kineticnet: interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


def _configure_jax() -> None:
    """Float64, and compiled programs kept between runs.

    What JAX makes while it traces lives on: garbage is looked for less often.
    """
    gc.set_threshold(*FEW_COLLECTIONS)
    jax.config.update("jax_enable_x64", True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "kineticnet_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _info(options: Info, console: Console) -> None:
    """Prints what is installed and available."""
    if options.json is not None:
        check_writable(options.json)
    packages = ("kineticnet-jax", "jax", "jaxlib", "flax", "e3nn-jax", "pyscf", "numpy", "scipy")
    content = {
        "versions": {"python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in packages},
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "functionals": [*FUNCTIONALS, "tf+λvw with any λ, such as tf+0.2vw", *PRETRAINED],
        "xc functionals": [*XC_FUNCTIONALS, NO_XC],
        "bases": [*reference.known_bases(), "any other all-electron basis of PySCF"],
        "density bases": [*DENSITY_BASES, "any basis"],
        "guesses": list(reference.GUESSES),
    }
    for name, value in content.items():
        items = value.items() if isinstance(value, dict) else None
        text = ", ".join(f"{k} {v}" for k, v in items) if items else ", ".join(value)
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    if options.json is not None:
        write_json(options.json, content)
