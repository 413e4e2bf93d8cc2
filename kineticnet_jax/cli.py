"""The command line: `kineticnet optimize`, `generate`, `fit`, `train`, `evaluate`, `info`."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, subcommand

import kineticnet_jax as kn
from kineticnet_jax import cli_data, cli_functionals, cli_train, reference
from kineticnet_jax.cli_data import warn
from kineticnet_jax.energy import NO_XC
from kineticnet_jax.errors import unknown_name
from kineticnet_jax.files import check_writable, complete_file, write_json
from kineticnet_jax.functionals.registry import FUNCTIONALS, PRETRAINED, training_conditions
from kineticnet_jax.functionals.xc import XC_FUNCTIONALS
from kineticnet_jax.interchange import load_density, save_density, write_cube, write_molden
from kineticnet_jax.minimize import Method
from kineticnet_jax.system import DENSITY_BASES

DONE, NOT_CONVERGED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

COEFFICIENTS, ORBITAL = ".npz", ".molden"
"""Endings of the files √n can be saved in."""


@dataclass(frozen=True)
class Optimize:
    """Optimize the electron density of a molecule without orbitals.

    Exit codes: 0 converged, 1 not converged (the best state is still reported), 2 bad input, 130
    interrupted. Ctrl-C ends the optimization after a few steps with the state it is in, reported
    and written as any other; once more, and nothing is.
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


@dataclass(frozen=True)
class Info:
    """Print what a data set or a learned functional is.

    Without one: versions, devices, functionals and bases.
    """

    file: Positional[Path | None] = None
    """HDF5 file of a data set, name of a pretrained functional or folder of a learned one."""
    json: Path | None = None
    """Write the same to this JSON file."""


Command = (
    Annotated[Optimize, subcommand("optimize")]
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
        if isinstance(command, Optimize):
            code = _optimize(command, console)
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
    """Float64, and compiled programs kept between runs."""
    jax.config.update("jax_enable_x64", True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "kineticnet_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _optimize(options: Optimize, console: Console) -> int:
    """Runs the optimization and reports it; returns the exit code."""
    functional = kn.load_functional(options.functional)
    options = _like_training(options, functional)
    xc, basis = _check(options)
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
    result = _result(options, system, solution, ground_state)
    result |= {"seconds": seconds, "preparation_seconds": preparation_seconds}
    _print_result(console, system, solution, ground_state, result)
    _write(options, system, solution, ground_state, result)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return DONE if solution.converged else NOT_CONVERGED


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
    for path in (options.json, options.plot, options.cube, options.save):
        if path is not None:
            check_writable(path)
    if options.save is not None and options.save.suffix not in (COEFFICIENTS, ORBITAL):
        raise kn.InputError(f"{options.save}: --save must end in {COEFFICIENTS} or {ORBITAL}")
    if options.plot is not None and options.plot.suffix not in (".png", ".pdf", ".svg"):
        raise kn.InputError(f"{options.plot}: a plot must end in .png, .pdf or .svg")
    for kind, name, known in (
        ("xc functional", options.xc, (*XC_FUNCTIONALS, NO_XC)),
        ("guess", options.guess, reference.GUESSES),
    ):
        if kind == "guess" and name.endswith(COEFFICIENTS):
            if not Path(name).is_file():
                raise kn.InputError(f"{name}: no such file")
        elif name not in known:
            raise unknown_name(kind, name, known)
    if options.reference and options.xc == NO_XC:
        raise kn.InputError("--reference needs an xc functional, but --xc is none")
    return options.xc, options.basis


def _guess(options: Optimize, system: kn.System) -> str | kn.SqrtDensity:
    if options.guess.endswith(COEFFICIENTS):
        return load_density(options.guess, system)
    return options.guess


def _result(
    options: Optimize,
    system: kn.System,
    solution: kn.Solution,
    ground_state: reference.KohnSham | None,
) -> dict[str, Any]:
    """Everything a program may want to know about the run; energies in hartree."""
    sampled = solution.density.on_grid(system)
    result: dict[str, Any] = {
        "molecule": system.molecule.formula,
        "functional": options.functional,
        "xc": options.xc,
        "basis": system.basis,
        "density_basis": system.density_basis.name,
        "grid_level": options.grid_level,
        "guess": options.guess,
        "method": options.method,
        "energy": solution.energy,
        "components": solution.components,
        "converged": solution.converged,
        "reason": solution.reason,
        "gradient_norm": solution.gradient_norm,
        "steps": solution.steps,
        "n_electrons": float(kn.integrate(system.grid.weights, sampled.n)),
        "version": kn.__version__,
    }
    if ground_state is not None:
        exact = kn.OrbitalDensity.from_kohn_sham(ground_state).on_grid(system)
        difference = kn.integrate(system.grid.weights, abs(sampled.n - exact.n))
        result |= {
            "reference_energy": ground_state.energy,
            "reference_components": ground_state.components,
            "reference_seconds": ground_state.seconds,
            "error_mha": 1e3 * (solution.energy - ground_state.energy),
            "density_l1": float(difference) / system.n_electrons,
        }
    return result


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
