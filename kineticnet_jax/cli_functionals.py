"""The commands of the command line that deal with learned functionals.

Modules that load e3nn, which takes a second, are imported where they are used.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

import kineticnet_jax as kn
from kineticnet_jax.cli_data import progress_bar
from kineticnet_jax.files import check_writable, write_json
from kineticnet_jax.functionals.base import Target

if TYPE_CHECKING:
    from kineticnet_jax.fit import Fit
    from kineticnet_jax.functionals.learned import LearnedFunctional


@dataclass(frozen=True)
class FitCommand:
    """Fit the closed-form reference functional to a data set.

    Least squares on the training geometries; the regularisation is chosen on the validation
    geometries, and the errors are those of the test geometries.

    Exit codes: 0 done, 2 bad input.
    """

    data: Positional[Path]
    """HDF5 file written by `kineticnet generate`."""
    out: Path
    """Folder to write the functional to."""
    target: Target = "pauli"
    """What is fitted: pauli (T_s - T_vW) or total (T_s)."""
    energies_only: bool = False
    """Leave out the potential labels; such a functional is good at fixed densities only."""
    directions: int | None = None
    """Random directions along which the potential of each sample is fitted; by default all."""
    energy_weight: float = 1.0
    """Weight of squared energy errors (hartree²) against potential errors as energies (hartree)."""
    seed: int = 0
    """Seed of the random directions."""
    json: Path | None = None
    """Write the errors to this JSON file."""


def fit(options: FitCommand, console: Console) -> None:
    """Fits, writes and tests a reference functional."""
    from kineticnet_jax.evaluate import sample_errors
    from kineticnet_jax.evaluation_report import fixed_density_table
    from kineticnet_jax.fit import FitSettings, fit_moments
    from kineticnet_jax.functionals.storage import check_free, save_functional

    if options.json is not None:
        check_writable(options.json)
    check_free(options.out)
    if options.directions is not None and options.directions < 1:
        raise kn.InputError(f"directions must be at least 1, but is {options.directions}")
    if not options.energy_weight > 0:
        raise kn.InputError(f"energy_weight must be positive, but is {options.energy_weight:g}")
    dataset = kn.Dataset(options.data)
    settings = FitSettings(
        potentials=not options.energies_only,
        directions=options.directions,
        energy_weight=options.energy_weight,
        seed=options.seed,
    )
    test = dataset.select(split="test")
    with progress_bar(console) as bar:
        row = bar.add_task("fitting, samples", total=len(dataset) - len(test))
        result = fit_moments(
            dataset,
            settings=settings,
            target=options.target,
            callback=lambda done: bar.update(row, completed=done),
        )
        save_functional(result.functional, options.out)
        row = bar.add_task("testing, samples", total=len(test))
        try:
            errors = sample_errors(
                result.functional, test, lambda done: bar.update(row, completed=done)
            )
        except KeyboardInterrupt:
            raise kn.IncompleteError(
                f"interrupted; the functional is in {options.out}, its test is not complete"
            ) from None
    table = fixed_density_table(errors)
    tested = {name: f"MAE {row['mae']:.3g} mHa" for name, row in table.items()}
    save_functional(_with_errors(result.functional, tested), options.out)
    _print_fit(result, table, console)
    console.print(f"written to {options.out}", highlight=False)
    if options.json is not None:
        write_json(
            options.json,
            {
                "regularization": result.regularization,
                "training_samples": result.samples,
                "seconds": result.seconds,
                "test": table,
            },
        )


def _with_errors(functional: "LearnedFunctional", errors: dict[str, str]) -> "LearnedFunctional":
    from kineticnet_jax.functionals.learned import Provenance

    details = functional.provenance.details
    details += tuple((f"test error of T_s, {name}", text) for name, text in errors.items())
    provenance = Provenance(functional.name, details)
    return dataclasses.replace(functional, provenance=provenance)


def _print_fit(result: "Fit", rows: dict[str, dict[str, float]], console: Console) -> None:
    table = Table(title="errors on test geometries in mHa", title_justify="left")
    table.add_column("family")
    for title in ("samples", "T_s MAE", "95 %", "largest", "potential", "median"):
        table.add_column(title, justify="right")
    for name, row in rows.items():
        columns = ("mae", "percentile95", "largest", "potential_mean", "potential_median")
        numbers = [f"{row[column]:.3g}" for column in columns]
        table.add_row(name, f"{row['samples']:.0f}", *numbers)
    console.print(table)
    console.print(
        f"{result.samples} training samples, regularisation {result.regularization:g}, "
        f"{result.seconds:.0f} s",
        highlight=False,
    )


def info(folder: Path, json: Path | None, console: Console) -> None:
    """Reports what a learned functional is."""
    from kineticnet_jax.functionals.learned import parameter_count
    from kineticnet_jax.functionals.storage import read_functional

    if json is not None:
        check_writable(json)
    functional = read_functional(folder)
    content: dict[str, Any] = {
        "name": functional.name,
        "target": functional.target,
        "elements": [chemical_symbols[z] for z in functional.elements],
        "parameters": parameter_count(functional),
        "network": None,
        "moments": None,
        "provenance": dict(functional.provenance.details),
    }
    for part in ("network", "moments"):
        config = getattr(functional, part)
        if config is not None:
            content[part] = dataclasses.asdict(config)
    meaning = {"pauli": "T_s - T_vW, with T_vW added", "total": "T_s"}[functional.target]
    console.print(f"[bold]{functional.name}[/bold]: learned {meaning}", highlight=False)
    console.print(f"[bold]elements[/bold]: {', '.join(content['elements'])}", highlight=False)
    for name, count in content["parameters"].items():
        part = "network" if name == "network" else "moments"
        settings = ", ".join(
            f"{key} {value}"
            for key, value in content[part].items()
            if key not in ("elements", "target")
        )
        console.print(f"[bold]{name}[/bold]: {count:,} parameters; {settings}", highlight=False)
    for name, value in content["provenance"].items():
        console.print(f"[bold]{name}[/bold]: {value}", highlight=False)
    if json is not None:
        write_json(json, content)
