"""The command that optimizes densities."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

import kineticnet_jax as kn
from kineticnet_jax import reference
from kineticnet_jax.cli_data import progress_bar, warn
from kineticnet_jax.files import check_writable, complete_file, write_json
from kineticnet_jax.functionals.registry import training_conditions
from kineticnet_jax.interchange import (
    load_density,
    read_frames,
    save_density,
    write_cube,
    write_molden,
)
from kineticnet_jax.minimize import Method
from kineticnet_jax.survey import Calculation, describe, survey

DONE, NOT_CONVERGED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

COEFFICIENTS, ORBITAL = ".npz", ".molden"
"""Endings of the files √n can be saved in."""

MOST_LISTED = 10
"""Geometries whose optimization failed that are listed one by one."""


@dataclass(frozen=True)
class Optimize:
    """Optimize the electron density of a molecule without orbitals.

    Exit codes: 0 converged, 1 not converged (the best state is still reported), 2 bad input, 130
    interrupted. Ctrl-C ends the optimization after a few steps with the state it is in, reported
    and written as any other; once more, and nothing is.

    With --out the geometries of a whole extended xyz file are computed on many processes, and a run
    that ends early goes on with the same command; its exit code is 1 if one does not converge.
    """

    molecule: Positional[Path]
    """xyz file with the geometry in ångström; - for standard input."""
    functional: str = "tf+vw"
    """Kinetic energy functional: tf, vw, tf+vw, tf+0.2vw, apbek, lkt or thakkar, a pretrained one
    (see `kineticnet info`), or the folder of a learned one."""
    xc: str | None = None
    """Exchange-correlation functional: lda, pbe, blyp or none. By default what a learned functional
    was trained with, else blyp."""
    basis: str | None = None
    """Orbital basis of the reference and of the initial guess; any name PySCF knows. By default
    what a learned functional was trained with, else cc-pvdz."""
    density_basis: str | None = None
    """Basis of √n: reference (the orbital basis), even-tempered, or a name. By default what a
    learned functional was trained with, else reference for two electrons and even-tempered for
    more."""
    guess: str = "sad"
    """Starting density: sad, minao, hcore, random, or an npz file of --save."""
    seed: int = 0
    """Seed of the random guess."""
    charge: int = 0
    """Total charge of the molecule."""
    grid_level: int = 3
    """Quadrature grid, 0 (coarse) to 5 (fine); 2 is the least for energies."""
    method: Method = "lbfgs"
    """Optimizer."""
    tolerance: float = 1e-6
    """Norm of the preconditioned energy gradient at convergence, in hartree^½."""
    max_steps: int = 200
    """Largest number of steps."""
    reference: bool = False
    """Also solve the Kohn–Sham equations with PySCF and compare."""
    json: Path | None = None
    """Write the results to this JSON file."""
    plot: Path | None = None
    """Write a figure of the density and of the convergence to this file (png, pdf or svg)."""
    cube: Path | None = None
    """Write the density to this cube file."""
    save: Path | None = None
    """Write √n to this file: its coefficients (npz), or as an orbital (molden)."""
    out: Path | None = None
    """Compute all geometries of the file and write a line of JSON for each to this file."""
    workers: int | None = None
    """With --out: number of local processes; by default one for each processor."""
    scheduler: str | None = None
    """With --out: address of a running dask scheduler whose workers compute instead, such as
    tcp://node1:8786."""


def optimize(options: Optimize, console: Console) -> int:
    """Runs the optimization and reports it; returns the exit code."""
    functional = kn.load_functional(options.functional)
    options = _like_training(options, functional)
    xc, basis = _check(options)
    if options.out is not None:
        return _optimize_all(options, options.out, console)
    molecule = _read_molecule(options)
    _warn_of_electrons(options.functional, molecule, functional)
    ground_state = None
    with console.status(f"{molecule.formula}: preparing") as status:
        start = time.perf_counter()
        system = kn.prepare(molecule, basis, options.density_basis, options.grid_level)
        preparation_seconds = time.perf_counter() - start
        if options.save is not None and options.save.suffix == ORBITAL:
            reference.mole_for_molden(molecule, system.density_basis.name)
        start_density = _guess(options, system)
        if options.reference:
            status.update(f"{molecule.formula}: Kohn–Sham reference")
            ground_state = reference.kohn_sham(molecule, xc, basis, options.grid_level)

        def show(progress: kn.Progress) -> bool:
            status.update(
                f"{molecule.formula}: step {progress.steps}, E = {progress.energy:.6f} Ha, "
                f"gradient norm {progress.gradient_norm:.1e}"
            )
            return interrupted.is_set()

        status.update(f"{molecule.formula}: compiling")
        start = time.perf_counter()
        with _first_interrupt() as interrupted:
            solution = kn.optimize_density(
                system,
                functional,
                xc,
                start_density,
                method=options.method,
                tolerance=options.tolerance,
                max_steps=options.max_steps,
                seed=options.seed,
                callback=show,
            )
        seconds = time.perf_counter() - start
    result = describe(_calculation(options), system, solution, ground_state)
    result |= {
        "version": kn.__version__,
        "seconds": seconds,
        "preparation_seconds": preparation_seconds,
    }
    _print_result(console, system, solution, ground_state, result)
    _write(options, system, solution, ground_state, result)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return DONE if solution.converged else NOT_CONVERGED


def _calculation(options: Optimize) -> Calculation:
    given = {field.name: getattr(options, field.name) for field in fields(Calculation)}
    return Calculation(**given)


def _optimize_all(options: Optimize, out: Path, console: Console) -> int:
    """Computes all geometries of a file and reports how many converged; returns the exit code."""
    molecules = read_frames(options.molecule, options.charge)
    if not molecules:
        raise kn.InputError(f"{options.molecule}: empty, expected geometries in xyz format")
    with progress_bar(console) as bar:
        row = bar.add_task("molecules", total=len(molecules))
        results = survey(
            molecules,
            _calculation(options),
            out,
            options.workers,
            options.scheduler,
            lambda done: bar.update(row, completed=done),
        )
        bar.update(row, completed=len(results))
    failed = [result for result in results if not result.get("converged")]
    for result in failed[:MOST_LISTED]:
        reason = result.get("error") or result["reason"]
        console.print(f"{result['number']}: {reason}", highlight=False)
    if len(failed) > MOST_LISTED:
        console.print(f"and {len(failed) - MOST_LISTED} more", highlight=False)
    errors = [abs(result["error_mha"]) for result in results if "error_mha" in result]
    if errors:
        mean = sum(errors) / len(errors)
        console.print(f"|E - E_KS|: mean {mean:.3f}, largest {max(errors):.3f} mHa")
    console.print(f"{len(results) - len(failed)} of {len(results)} converged, results in {out}")
    return NOT_CONVERGED if failed else DONE


@contextmanager
def _first_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the next one is a KeyboardInterrupt again."""
    interrupted = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _like_training(options: Optimize, functional: kn.Functional) -> Optimize:
    """Options that were left out as a learned functional was trained; warns of other ones."""
    trained = training_conditions(functional)
    changes: dict[str, Any] = {}
    for name, default in (("xc", "blyp"), ("basis", "cc-pvdz"), ("density_basis", None)):
        given, known = getattr(options, name), trained.get(name.replace("_", " "))
        if given is None:
            changes[name] = known or default
        elif known and given.lower() != known:
            option = name.replace("_", "-")
            warn(
                f"'{options.functional}' was trained with {option} {known}, but --{option} is "
                f"{given}"
            )
    return replace(options, **changes)


def _warn_of_electrons(name: str, molecule: kn.Molecule, functional: kn.Functional) -> None:
    known = training_conditions(functional).get("electrons")
    if known and str(molecule.n_electrons) not in known.split(", "):
        warn(
            f"'{name}' was trained on systems of {known} electrons, but {molecule.formula} "
            f"(charge {molecule.charge}) has {molecule.n_electrons}"
        )


def _read_molecule(options: Optimize) -> kn.Molecule:
    if options.molecule != Path("-"):
        return kn.Molecule.from_xyz(options.molecule, options.charge)
    try:
        return kn.Molecule.from_string(sys.stdin.read(), options.charge)
    except UnicodeDecodeError:
        raise kn.InputError("standard input: not text, expected xyz") from None
    except kn.InputError as error:
        raise kn.InputError(f"standard input: {error}") from None


def _check(options: Optimize) -> tuple[str, str]:
    """Finds bad names and unwritable outputs before anything expensive starts.

    Returns:
        The names of the xc functional and of the basis.
    """
    assert options.xc is not None
    assert options.basis is not None
    for path in (options.json, options.plot, options.cube, options.save, options.out):
        if path is not None:
            check_writable(path)
    if options.save is not None and options.save.suffix not in (COEFFICIENTS, ORBITAL):
        raise kn.InputError(f"{options.save}: --save must end in {COEFFICIENTS} or {ORBITAL}")
    if options.plot is not None and options.plot.suffix not in (".png", ".pdf", ".svg"):
        raise kn.InputError(f"{options.plot}: a plot must end in .png, .pdf or .svg")
    calculation = _calculation(options)
    if options.guess.endswith(COEFFICIENTS):
        if options.out is not None:
            raise kn.InputError("--guess FILE does not go with --out; give the name of a guess")
        if not Path(options.guess).is_file():
            raise kn.InputError(f"{options.guess}: no such file")
        calculation = replace(calculation, guess="sad")
    calculation.check()
    alone = (
        {"json", "plot", "cube", "save"} if options.out is not None else {"workers", "scheduler"}
    )
    for name in sorted(alone):
        if getattr(options, name) is not None:
            other = "does not go with" if options.out is not None else "needs"
            raise kn.InputError(f"--{name} {other} --out, a line of results for each geometry")
    return options.xc, options.basis


def _guess(options: Optimize, system: kn.System) -> str | kn.SqrtDensity:
    if options.guess.endswith(COEFFICIENTS):
        return load_density(options.guess, system)
    return options.guess


def _print_result(
    console: Console,
    system: kn.System,
    solution: kn.Solution,
    ground_state: reference.KohnSham | None,
    result: dict[str, Any],
) -> None:
    title = f"{system.molecule.formula}, {result['functional']} + {result['xc']}"
    table = Table(title=title, title_justify="left")
    table.add_column("energy (Ha)")
    table.add_column("orbital-free", justify="right")
    if ground_state is not None:
        table.add_column(f"Kohn–Sham {system.basis}", justify="right")
        table.add_column("difference (mHa)", justify="right")
    energies = solution.components | {"total": solution.energy}
    exact = {} if ground_state is None else ground_state.components | {"total": ground_state.energy}
    for name, value in energies.items():
        if name == "total":
            table.add_section()
        row = [name, f"{value:.6f}"]
        if ground_state is not None:
            # Adding zero turns a rounded -0.0 into 0.0.
            difference = round(1e3 * (value - exact[name]), 3) + 0.0
            row += [f"{exact[name]:.6f}", f"{difference:.3f}"]
        table.add_row(*row)
    console.print(table)
    console.print(solution.reason)
    console.print(
        f"density basis {system.density_basis.name}, {result['n_electrons']:.6f} electrons on the "
        f"grid, {result['seconds']:.1f} s after preparing {result['preparation_seconds']:.1f} s"
    )
    if ground_state is not None:
        console.print(
            f"density difference ∫|n - n_KS|/N = {result['density_l1']:.2e}, "
            f"Kohn–Sham took {ground_state.seconds:.1f} s"
        )


def _write(
    options: Optimize,
    system: kn.System,
    solution: kn.Solution,
    ground_state: reference.KohnSham | None,
    result: dict[str, Any],
) -> None:
    if options.json is not None:
        write_json(options.json, result)
    if options.plot is not None:
        # Matplotlib takes half a second to import, which most runs do not need.
        from kineticnet_jax.report import plot_solution

        exact = None if ground_state is None else kn.OrbitalDensity.from_kohn_sham(ground_state)
        figure = plot_solution(system, solution, exact)
        with complete_file(options.plot) as temporary:
            figure.savefig(temporary, dpi=150)
    if options.cube is not None:
        write_cube(options.cube, system, solution.density)
    if options.save is not None:
        write = save_density if options.save.suffix == COEFFICIENTS else write_molden
        write(options.save, system, solution.density)
