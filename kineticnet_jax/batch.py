"""Density optimization of many molecules in one process, a thread for each processor.

Molecules of one composition have arrays of the same shapes and share compiled programs, which run
side by side. Each molecule has its own loop, so none waits for the slowest of a batch.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import jax
import jax.numpy as jnp
import numpy as np

from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.base import Functional
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.minimize import Method
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Solution, check_limits, optimize_density
from kineticnet_jax.system import prepare


def optimize_densities(
    molecules: Iterable[Molecule],
    functional: Functional | str,
    xc: str = "blyp",
    guess: str = "sad",
    *,
    basis: str = "cc-pvdz",
    density_basis: str | None = None,
    grid_level: int = 3,
    dtype: np.typing.DTypeLike | None = None,
    external_field: tuple[float, float, float] = (0.0, 0.0, 0.0),
    method: Method = "lbfgs",
    tolerance: float | None = None,
    max_steps: int = 200,
    seed: int = 0,
    hartree: bool = True,
    threads: int | None = None,
    callback: Callable[[int, Solution], object] | None = None,
) -> list[Solution]:
    """Optimizes the densities of many molecules, as `prepare` and `optimize_density` do of one.

    Systems exist only while they are needed, so memory is bounded by the number of threads. For
    more than one process or machine, see `survey.survey`.

    Args:
        molecules: in any order; those of the same composition share compiled programs.
        functional: kinetic energy functional or its name.
        xc: exchange-correlation functional: "lda", "pbe", "blyp" or "none".
        guess: name of a starting guess: "sad", "minao", "hcore" or "random".
        basis: see `prepare`, as the next four.
        density_basis: basis of √n.
        grid_level: 0 (coarse) to 5 (fine).
        dtype: working precision.
        external_field: uniform electric field in hartree/(e bohr).
        method: see `optimize_density`, as the next four.
        tolerance: gradient norm at convergence.
        max_steps: largest number of steps.
        seed: of the random guess, the same for all.
        hartree: False for electrons that do not interact.
        threads: molecules computed at the same time; by default one for each processor.
        callback: called in this thread with the index of a molecule and its solution, in the order
            in which they are finished.

    Returns:
        The solutions in the order of the molecules. Failure to converge is no exception, and does
        not concern the other molecules: see `Solution.converged`.

    Raises:
        InputError: as in `prepare` and `optimize_density`, with the molecule named; for less than
            one thread.
    """
    molecules = list(molecules)
    if isinstance(functional, str):
        functional = load_functional(functional)
    check_limits(method, 1.0 if tolerance is None else tolerance, max_steps)
    if threads is not None and threads < 1:
        raise InputError(f"the number of threads must be at least 1, but is {threads}")
    # A context that sets it is one of this thread only.
    precision = jnp.result_type(float) == np.float64

    def optimize(index: int) -> Solution:
        try:
            with jax.enable_x64(precision):
                system = prepare(
                    molecules[index], basis, density_basis, grid_level, dtype, external_field
                )
                return optimize_density(
                    system,
                    functional,
                    xc,
                    guess,
                    method=method,
                    tolerance=tolerance,
                    max_steps=max_steps,
                    seed=seed,
                    hartree=hartree,
                )
        except InputError as error:
            raise InputError(
                f"molecule {index + 1} ({molecules[index].formula}): {error}"
            ) from None

    solutions: dict[int, Solution] = {}
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for indices in _rounds(molecules):
            futures = {pool.submit(optimize, index): index for index in indices}
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    solutions[index] = future.result()
                    if callback is not None:
                        callback(index, solutions[index])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [solutions[index] for index in range(len(molecules))]


def _rounds(molecules: Sequence[Molecule]) -> tuple[list[int], list[int]]:
    """One molecule of each composition, which compiles for all of them; and then the others."""
    first: dict[tuple[int, ...], int] = {}
    rest = []
    for index, molecule in enumerate(molecules):
        composition = (molecule.charge, *(int(z) for z in molecule.charges))
        if first.setdefault(composition, index) != index:
            rest.append(index)
    return list(first.values()), rest
