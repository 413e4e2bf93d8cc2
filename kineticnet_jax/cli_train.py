"""The command `kineticnet train`."""

from dataclasses import dataclass
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tyro.conf import Positional

import kineticnet_jax as kn


@dataclass(frozen=True)
class TrainCommand:
    """Train a network on a data set, or go on with a run that was stopped.

    The folder of the run gets the metrics, checkpoints, plots, and the functional itself, in the
    folder "best", for everything else that takes a functional.
    """

    config: Positional[Path]
    """TOML file with the settings of the run."""
    data: Path
    """HDF5 file written by `kineticnet generate`."""
    out: Path
    """Folder of the run; if it holds the same run already, it goes on from the last checkpoint."""
    devices: int = 1
    """Number of devices over which the geometries of a step are spread."""


def train_command(options: TrainCommand, console: Console) -> None:
    """Runs the training and reports it."""
    from kineticnet_jax.train.config import load_train_config
    from kineticnet_jax.train.loop import Progress as Step
    from kineticnet_jax.train.loop import train
    from kineticnet_jax.train.plot import write_training_figure

    config = load_train_config(options.config)
    available = jax.devices()
    if not 1 <= options.devices <= len(available):
        raise kn.InputError(f"devices must be 1 to {len(available)}, but is {options.devices}")
    dataset = kn.Dataset(options.data)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        row = bar.add_task("compiling", total=config.steps)

        def show(progress: Step) -> None:
            m = progress.metrics
            text = (
                f"step {progress.step}/{progress.steps}: T_s {m['energy']:.3g}, "
                f"τ {m['tau']:.3g}, potential {m['potential']:.3g} mHa, "
                f"{m['samples_per_second']:.0f} samples/s"
            )
            bar.update(row, description=text, completed=progress.step)

        functional = train(
            config,
            dataset,
            options.out,
            show,
            available[: options.devices] if options.devices > 1 else None,
        )
    write_training_figure(options.out)
    for name, value in functional.provenance.details:
        if name.startswith("validation error") or name == "steps":
            console.print(f"{name}: {value}", highlight=False)
    console.print(f"written to {options.out / 'best'}", highlight=False)
