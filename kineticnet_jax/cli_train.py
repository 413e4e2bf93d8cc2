"""The commands `kineticnet train` and `kineticnet evaluate`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress, TaskID
from tyro.conf import Positional

import kineticnet_jax as kn
from kineticnet_jax import reference
from kineticnet_jax.cli_data import progress_bar, warn
from kineticnet_jax.errors import unknown_name
from kineticnet_jax.files import check_writable
from kineticnet_jax.functionals.registry import training_conditions


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
    """Number of devices over which the geometries of a step are spread: GPUs, or cores. Of several
    processes, started by srun or mpirun, it is that of each."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure the errors of a functional on a data set, beside those of classical ones.

    At the densities of the data set, and after optimizing the density of each of its geometries.
    """

    functional: Positional[str]
    """Any kinetic energy functional: a name, or the folder of a learned one."""
    data: Path
    """HDF5 file written by `kineticnet generate`."""
    out: Path
    """Folder for report.md, errors.json and figures; a report that is there is replaced."""
    split: str = "test"
    """Geometries that are used: test, validation or train."""
    guesses: tuple[str, ...] = ("sad",)
    """Starting densities of the optimizations: sad, minao, hcore, random."""
    seeds: int = 1
    """Number of random starting densities, if they are among the guesses."""
    fixed_only: bool = False
    """Leave out the optimizations."""
    alone: bool = False
    """Leave out the classical functionals."""


def train_command(options: TrainCommand, console: Console) -> None:
    """Runs the training and reports it."""
    from kineticnet_jax.train.config import load_train_config
    from kineticnet_jax.train.loop import Progress as Step
    from kineticnet_jax.train.loop import train
    from kineticnet_jax.train.moment_config import MomentTrainConfig
    from kineticnet_jax.train.moment_loop import train_moments
    from kineticnet_jax.train.plot import write_training_figure
    from kineticnet_jax.train.processes import is_first, join

    config = load_train_config(options.config)
    if isinstance(config, MomentTrainConfig) and options.devices > 1:
        raise kn.InputError("a moment network is trained on one device: leave out --devices")
    # Has an effect on processors only: the cores as so many devices.
    jax.config.update("jax_num_cpu_devices", max(options.devices, 1))
    join()
    if not is_first():
        console = Console(quiet=True)
    dataset = kn.Dataset(options.data)
    with progress_bar(console) as bar:
        row = bar.add_task("compiling", total=config.steps)

        def show(progress: Step) -> None:
            m, losses = progress.metrics, {"energy": "T_s", "tau": "τ", "potential": "potential"}
            # What has no weight is not measured.
            shown = [f"{name} {m[key]:.3g}" for key, name in losses.items() if m[key]]
            text = f"steps: {', '.join(shown)} mHa, {m['samples_per_second']:.0f} samples/s"
            bar.update(row, description=text, completed=progress.step)

        def prepared(family: str, samples: int) -> None:
            bar.update(row, description=f"moments of {samples} samples of {family}")

        if isinstance(config, MomentTrainConfig):
            functional = train_moments(config, dataset, options.out, show, prepared)
        else:
            functional = train(config, dataset, options.out, show, options.devices)
    if is_first():
        write_training_figure(options.out)
    for name, value in functional.provenance.details:
        if name.startswith("validation error") or name == "steps":
            console.print(f"{name}: {value}", highlight=False)
    console.print(f"written to {options.out / 'best'}", highlight=False)


def evaluate_command(options: EvaluateCommand, console: Console) -> None:
    """Measures the errors and writes the report."""
    from kineticnet_jax.evaluate import BASELINES, grid_errors, optimization_errors, sample_errors
    from kineticnet_jax.evaluation_report import (
        fixed_density_table,
        optimization_table,
        write_report,
    )

    for guess in options.guesses:
        if guess not in reference.GUESSES:
            raise unknown_name("guess", guess, reference.GUESSES)
    if options.seeds < 1:
        raise kn.InputError(f"seeds must be at least 1, but is {options.seeds}")
    if options.out.exists() and not (options.out / "report.md").is_file():
        raise kn.InputError(f"{options.out}: exists and holds no report; give another folder")
    check_writable(options.out / "report.md" if options.out.exists() else options.out)
    functional = kn.load_functional(options.functional)
    name = getattr(functional, "name", options.functional)
    functionals = {name: functional}
    if not options.alone:
        functionals |= {other: kn.load_functional(other) for other in BASELINES}
    dataset = kn.Dataset(options.data).select(split=options.split)
    if len(dataset) == 0:
        raise kn.InputError(f"{options.data}: has no {options.split} samples")
    _warn_of_other_labels(name, functional, dataset)
    starts = [(guess, 0) for guess in options.guesses if guess != "random"]
    if "random" in options.guesses:
        starts += [("random", seed) for seed in range(options.seeds)]
    title = f"{name} on {dataset.config.name} ({options.split} geometries)"
    optimized = {}
    with progress_bar(console) as bar:
        fixed = {}
        for other, one in functionals.items():
            row = bar.add_task(f"{other}, samples", total=len(dataset))
            fixed[other] = sample_errors(one, dataset, partial(_show, bar, row))
        # Optimizations take longer: what is known already is there to be read.
        options.out.mkdir(exist_ok=True)
        write_report(options.out, title, fixed, {}, {})
        if not options.fixed_only:
            row = bar.add_task("optimizing, geometries", total=len(dataset.geometries))
            try:
                optimized = optimization_errors(
                    functionals,
                    dataset,
                    tuple(starts),
                    callback=partial(_show, bar, row),
                )
            except KeyboardInterrupt:
                raise kn.IncompleteError(
                    f"interrupted; the errors at fixed densities are in {options.out}"
                ) from None
            grids = {name: grid_errors(functional, dataset)}
            write_report(options.out, title, fixed, optimized, grids)
    for other, errors in fixed.items():
        total = list(fixed_density_table(errors).values())[-1]
        text = f"{other}: T_s MAE {total['mae']:.3g} mHa"
        text += f", potential {total['potential_mean']:.3g} mHa"
        if other in optimized:
            total = list(optimization_table(optimized[other]).values())[-1]
            text += (
                f"; optimized: E {total['mae']:.3g} mHa, ∫|Δn|/N {total['density_mean']:.2g}, "
                f"{100 * total['converged']:.0f} % converged"
            )
        console.print(text, highlight=False)
    console.print(f"written to {options.out}", highlight=False)


def _warn_of_other_labels(name: str, functional: kn.Functional, dataset: kn.Dataset) -> None:
    trained, labels = training_conditions(functional), dataset.conditions(())
    for key in ("xc", "basis"):
        if trained.get(key, labels[key]) != labels[key]:
            warn(
                f"'{name}' was trained with {key} {trained[key]}, but the data set has "
                f"{labels[key]}"
            )


def _show(bar: Progress, row: TaskID, done: int) -> None:
    bar.update(row, completed=done)
