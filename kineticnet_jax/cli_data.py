"""The commands of the command line that deal with data sets."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from tyro.conf import Positional

from kineticnet_jax.data import run
from kineticnet_jax.data.config import SPLITS, load_config
from kineticnet_jax.data.generate import REASONS
from kineticnet_jax.data.summary import Summary, summarize
from kineticnet_jax.errors import IncompleteError
from kineticnet_jax.files import check_writable, write_json


@dataclass(frozen=True)
class Generate:
    """Generate a data set of Kohn-Sham ground states in random external potentials.

    A run that ends early loses only the geometries it was at; the same command goes on.

    Exit codes: 0 complete, 1 stopped before its end, 2 bad input.
    """

    config: Positional[Path]
    """TOML file that describes the data set; ready ones are in experiments/configs."""
    out: Path
    """HDF5 file to write; it appears when it is complete."""
    workers: int | None = None
    """Number of local processes; by default one for each processor."""
    scheduler: str | None = None
    """Address of a running dask scheduler whose workers compute instead, such as
    tcp://node1:8786."""
    json: Path | None = None
    """Write a summary of the data set to this JSON file."""


def generate(options: Generate, console: Console) -> None:
    """Generates a data set with a progress bar and reports what is in it."""
    if options.json is not None:
        check_writable(options.json)
    config = load_config(options.config)
    start = time.perf_counter()
    with progress_bar(console) as bar:
        total = sum(family.geometries for family in config.families)
        row = bar.add_task("geometries", total=total)

        def show(progress: run.Progress) -> None:
            rate = 60 * progress.samples / (time.perf_counter() - start)
            bar.update(
                row, completed=progress.done, description=f"geometries, {rate:.0f} samples/min"
            )

        try:
            run.generate(config, options.out, options.workers, options.scheduler, show)
        except KeyboardInterrupt:
            raise IncompleteError(
                "interrupted; finished geometries are kept in "
                f"{run.parts_folder(options.out)}: run the same again"
            ) from None
    info(options.out, options.json, console)


def warn(message: str) -> None:
    """Prints a warning of one line on standard error."""
    print(f"kineticnet: warning: {message}", file=sys.stderr)


def progress_bar(console: Console) -> Progress:
    """A bar with counts, the time taken and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def info(path: Path, json: Path | None, console: Console) -> None:
    """Reports what is in a data set."""
    if json is not None:
        check_writable(json)
    summary = summarize(path)
    _print(summary, console)
    if json is not None:
        write_json(json, summary.as_dict())


def _print(summary: Summary, console: Console) -> None:
    config = summary.config
    table = Table(
        title=f"{config.name}: {config.mode}, {config.xc}/{config.basis}, grid level "
        f"{config.grid_level}, seed {config.seed}",
        title_justify="left",
    )
    table.add_column("family")
    for title in ("points", "geometries", "samples", "rejected", "T_s (Ha)", "Δn (%)"):
        table.add_column(title, justify="right", no_wrap=True)
    for family in summary.families:
        energies, changes = family.kinetic_energy, family.density_change
        table.add_row(
            family.name,
            str(family.points),
            "+".join(str(family.geometries[name]) for name in SPLITS),
            "+".join(str(family.samples[name]) for name in SPLITS),
            str(sum(family.rejected.values())),
            "" if energies is None else f"{energies[0]:.2f}…{energies[1]:.2f}",
            "" if changes is None else f"{100 * changes[0]:.2f}…{100 * changes[1]:.1f}",
        )
    console.print(table)
    console.print(
        f"geometries and samples: {' + '.join(SPLITS)}; Δn = ∫|n - n₀| dr / N of perturbed "
        "samples, median…largest",
        highlight=False,
    )
    kinds = ", ".join(kind.name for kind in config.potentials)
    console.print(
        f"{summary.samples} samples, {summary.megabytes:.1f} MB; potentials: {kinds}; "
        f"{config.potentials_per_geometry} drawn for each geometry",
        highlight=False,
    )
    for reason, count in sorted(summary.rejected.items()):
        console.print(f"{count} rejected as {reason}: {REASONS[reason]}", highlight=False)
    for index, why in summary.failures.items():
        console.print(f"geometry {index} is missing: {why}", highlight=False)
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    console.print(f"made with {versions}", highlight=False)
