"""Density optimization of many molecules on many processes, with a line of results for each.

Results are lines of JSON in the order in which they are finished. A run that ends early loses only
the molecules it was at: the same call goes on, after a line that was only half written is removed.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from kineticnet_jax import cluster, reference
from kineticnet_jax.density import OrbitalDensity
from kineticnet_jax.energy import NO_XC
from kineticnet_jax.errors import (
    ConvergenceError,
    IncompleteError,
    InputError,
    first_line,
    unknown_name,
)
from kineticnet_jax.files import check_writable, lock
from kineticnet_jax.functionals.base import Functional
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.functionals.xc import XC_FUNCTIONALS
from kineticnet_jax.grid import check_level
from kineticnet_jax.minimize import Method
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Solution, check_limits, optimize_density
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import DENSITY_BASES, System, prepare
from kineticnet_jax.units import BOHR_IN_ANGSTROM


@dataclass(frozen=True)
class Calculation:
    """How the density of a molecule is optimized, and whether it is compared.

    Attributes:
        functional: kinetic energy functional: its name, or the folder of a learned one.
        xc: exchange-correlation functional.
        basis: orbital basis of the reference and of the guess.
        density_basis: basis of √n, see `prepare`.
        guess: name of the starting density.
        seed: of the random guess.
        grid_level: of the quadrature.
        method: optimizer.
        tolerance: gradient norm at convergence in hartree^½.
        max_steps: largest number of steps.
        reference: whether the Kohn–Sham equations are solved too.
    """

    functional: str
    xc: str = "blyp"
    basis: str = "cc-pvdz"
    density_basis: str | None = None
    guess: str = "sad"
    seed: int = 0
    grid_level: int = 3
    method: Method = "lbfgs"
    tolerance: float = 1e-6
    max_steps: int = 200
    reference: bool = False

    def check(self) -> None:
        """Finds what is wrong for any molecule and functional, before anything expensive starts.

        Raises:
            InputError: naming what to change.
        """
        for kind, name, known in (
            ("xc functional", self.xc.lower(), (*XC_FUNCTIONALS, NO_XC)),
            ("guess", self.guess, reference.GUESSES),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        for basis in (self.basis, self.density_basis):
            if basis is not None and basis not in DENSITY_BASES:
                reference.check_basis(basis)
        check_level(self.grid_level)
        check_limits(self.method, self.tolerance, self.max_steps)
        if self.reference and self.xc.lower() == NO_XC:
            raise InputError("--reference needs an xc functional, but --xc is none")


def describe(
    calculation: Calculation,
    system: System,
    solution: Solution,
    ground_state: reference.KohnSham | None,
) -> dict[str, Any]:
    """Everything a program may want to know about an optimization; energies in hartree.

    Args:
        calculation: what was done.
        system: for which molecule.
        solution: what came out.
        ground_state: Kohn–Sham reference it is compared with.
    """
    sampled = solution.density.on_grid(system)
    result: dict[str, Any] = {
        "molecule": system.molecule.formula,
        "functional": calculation.functional,
        "xc": calculation.xc,
        "basis": system.basis,
        "density_basis": system.density_basis.name,
        "grid_level": system.grid_level,
        "guess": calculation.guess,
        "method": calculation.method,
        "energy": solution.energy,
        "components": solution.components,
        "converged": solution.converged,
        "reason": solution.reason,
        "gradient_norm": solution.gradient_norm,
        "steps": solution.steps,
        "n_electrons": float(integrate(system.grid.weights, sampled.n)),
    }
    if ground_state is not None:
        exact = OrbitalDensity.from_kohn_sham(ground_state).on_grid(system)
        difference = integrate(system.grid.weights, abs(sampled.n - exact.n))
        result |= {
            "reference_energy": ground_state.energy,
            "reference_components": ground_state.components,
            "reference_seconds": ground_state.seconds,
            "error_mha": 1e3 * (solution.energy - ground_state.energy),
            "density_l1": float(difference) / system.n_electrons,
        }
    return result


def survey(
    molecules: Sequence[Molecule],
    calculation: Calculation,
    path: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    callback: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Optimizes the densities of many molecules, or goes on with a survey that was stopped.

    Molecules of the same composition come one after the other, as they share compiled programs.
    A molecule that cannot be computed gets a line that says why.

    Args:
        molecules: the molecules.
        calculation: how, the same for all.
        path: file of the results, a line of JSON for each molecule: `describe`, its number (from
            one), geometry (Å) and settings, and the seconds it took; or its "error".
        workers: number of local processes, each on one thread; by default one for each processor.
        scheduler: address of a running dask scheduler, whose workers are used instead.
        callback: called with the number of molecules that are done, after each of them.

    Returns:
        The results in the order of the molecules.

    Raises:
        InputError: as in `Calculation.check` and `load_functional`; if the file holds something
            else, or another survey is writing it; for less than one worker, or a scheduler that
            does not answer.
        IncompleteError: if a worker fails, the disk is full, or the survey is interrupted; the
            same call goes on from there.
    """
    path = Path(path)
    calculation.check()
    load_functional(calculation.functional)
    cluster.check_workers(workers)
    check_writable(path)
    given = {
        number: _identity(calculation, number, molecule)
        for number, molecule in enumerate(molecules, 1)
    }
    with _locked(path) as file:
        found = _finished(path, file, given)
        missing = sorted(given.keys() - found, key=lambda i: (molecules[i - 1].formula, i))

        def kept() -> str:
            return f"{len(found)} of {len(given)} molecules are kept in {path}: run the same again"

        try:
            if missing:
                with cluster.connect(workers, scheduler) as client:
                    tasks = ((calculation, i, molecules[i - 1]) for i in missing)
                    for result in cluster.results(client, optimize_one, tasks):
                        file.write(json.dumps(result).encode() + b"\n")
                        file.flush()
                        os.fsync(file.fileno())
                        found[result["number"]] = result
                        if callback is not None:
                            callback(len(found))
        except cluster.WorkerError as error:
            raise IncompleteError(f"{error}; {kept()}") from error
        except OSError as error:
            reason = f"results cannot be written ({first_line(error)})"
            raise IncompleteError(f"{reason}; {kept()}") from None
        except KeyboardInterrupt:
            raise IncompleteError(f"interrupted; {kept()}") from None
    return [found[number] for number in given]


def optimize_one(calculation: Calculation, number: int, molecule: Molecule) -> dict[str, Any]:
    """The line of results of one molecule.

    Args:
        calculation: what to do.
        number: of the molecule.
        molecule: any.
    """
    cluster.drop_programs_if_many()
    start = time.perf_counter()
    result = _identity(calculation, number, molecule)
    try:
        with jax.enable_x64(True):
            result |= _optimized(calculation, molecule)
    except (InputError, ConvergenceError) as error:
        result["error"] = str(error)
    return result | {"seconds": time.perf_counter() - start}


def _optimized(calculation: Calculation, molecule: Molecule) -> dict[str, Any]:
    system = prepare(molecule, calculation.basis, calculation.density_basis, calculation.grid_level)
    ground_state = None
    if calculation.reference:
        ground_state = reference.kohn_sham(
            molecule, calculation.xc, calculation.basis, calculation.grid_level
        )
    solution = optimize_density(
        system,
        _functional(calculation.functional),
        calculation.xc,
        calculation.guess,
        method=calculation.method,
        tolerance=calculation.tolerance,
        max_steps=calculation.max_steps,
        seed=calculation.seed,
    )
    return describe(calculation, system, solution, ground_state)


@cache
def _functional(name: str) -> Functional:
    return load_functional(name)


def _identity(calculation: Calculation, number: int, molecule: Molecule) -> dict[str, Any]:
    """What tells a line of results from one of another molecule or another calculation."""
    return {
        "number": number,
        "symbols": molecule.symbols,
        "positions": (np.asarray(molecule.positions) * BOHR_IN_ANGSTROM).tolist(),
        "charge": molecule.charge,
        "settings": asdict(calculation),
    }


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file of results, open for nobody else."""
    with path.open("a+b") as file:
        lock(file, path)
        yield file


def _finished(
    path: Path, file: BinaryIO, given: dict[int, dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Results that are there already, by number; what is left of a half-written line is removed."""
    file.seek(0)
    *lines, rest = file.read().split(b"\n")
    found = {}
    for row, line in enumerate(lines, 1):
        try:
            result = json.loads(line)
            same = given[result["number"]].items() <= result.items()
        except (ValueError, TypeError, KeyError, AttributeError):
            same = False
        if not same:
            raise InputError(
                f"{path}: line {row} is no result of these molecules with these settings; choose "
                "another file"
            )
        found[result["number"]] = result
    beginning = b'{"number": '
    if rest[: len(beginning)] != beginning[: len(rest)]:
        raise InputError(f"{path}: holds something else; choose another file")
    file.truncate(sum(len(line) + 1 for line in lines))
    return found
