"""Measures one case of the suite and prints what it finds, a line of JSON after each part.

Run by suite.py, which sets the number of processors; what was printed counts even if this process
does not come to its end.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from pyscf import dft
from suite_cases import COARSE_LEVEL, FAMILIES, TOLERANCE, Case, make_functional

import kineticnet_jax as kn
from kineticnet_jax.functionals.registry import training_conditions
from kineticnet_jax.reference import build_mole
from kineticnet_jax.reference.kohn_sham import PYSCF_XC

MOST_REPEATS = 15


def peak_memory() -> float:
    """The most memory this process had, in GB.

    Not from `getrusage`, which begins with that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e6
    raise RuntimeError("/proc/self/status does not tell the peak of memory")


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def alternating(seconds: float, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function, in turn until the time is over."""
    times: list[list[float]] = [[] for _ in functions]
    while len(times[0]) < MOST_REPEATS and sum(map(sum, times)) < seconds * len(functions):
        for column, function in zip(times, functions, strict=True):
            column.append(timed(function)[0])
    return [statistics.median(column) for column in times]


def value_and_gradient(energy: kn.TotalEnergy, density: kn.SqrtDensity) -> Any:
    """E and its derivative with respect to the coefficients of √n."""
    return jax.value_and_grad(lambda density: energy(density))(density)


def hessian_product(
    energy: kn.TotalEnergy, density: kn.SqrtDensity, direction: kn.SqrtDensity
) -> Any:
    """The Hessian of E times a direction."""
    gradient = jax.grad(lambda density: energy(density))
    return jax.jvp(gradient, (density,), (direction,))[1]


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[float, Callable[..., Any]]:
    """Seconds of tracing and compiling, and the program."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return time.perf_counter() - start, program


def kohn_sham_runner(case: Case) -> Callable[[], Any]:
    """A PySCF calculation with its own defaults, on the grid of the same level."""
    mol = build_mole(case.molecule, case.basis)

    def run() -> dft.rks.RKS:
        field = dft.RKS(mol, xc=PYSCF_XC[case.xc])
        field.grids.level = case.grid_level
        return field.run()

    return run


def measure_kohn_sham(case: Case) -> Iterator[dict[str, Any]]:
    """Time and memory of RKS in a process that does nothing else."""
    yield {"phase": "Kohn-Sham"}
    seconds, field = timed(kohn_sham_runner(case))
    yield {"rks": seconds, "rks_converged": bool(field.converged), "peak": peak_memory()}


def measure_cost(case: Case) -> Iterator[dict[str, Any]]:
    """Times and memory of all parts of an orbital-free calculation, and RKS beside it."""
    yield {"phase": "preparation"}
    molecule = case.molecule
    functional = make_functional(case.functional, molecule)
    electrons = training_conditions(functional).get("electrons")
    bases = (molecule, case.basis, case.density_basis)

    def prepare() -> tuple[kn.System, kn.System]:
        coarse = kn.prepare(*bases, min(COARSE_LEVEL, case.grid_level), "float32")
        return kn.prepare(*bases, case.grid_level), coarse

    seconds, (system, coarse) = timed(prepare)
    yield {
        "electrons": molecule.n_electrons,
        "trained": electrons is None or str(molecule.n_electrons) in electrons.split(", "),
        "points": len(system.grid.weights),
        "functions": len(system.density_basis.overlap),
        "prepare_first": seconds,
        "peak": peak_memory(),
        "phase": "start",
    }
    energy = kn.total_energy(system, functional, case.xc)
    density = kn.initial_density(system)
    yield {"peak": peak_memory(), "phase": "energy and gradient"}
    seconds, program = compiled(value_and_gradient, energy, density)
    timed(program, energy, density)
    (gradient,) = alternating(case.seconds, lambda: program(energy, density))
    yield {
        "gradient_compile": seconds,
        "gradient": gradient,
        "peak": peak_memory(),
        "phase": "Hessian-vector product",
    }
    seconds, program = compiled(hessian_product, energy, density, density)
    timed(program, energy, density, density)
    (product,) = alternating(case.seconds, lambda: program(energy, density, density))
    yield {
        "hvp_compile": seconds,
        "hvp": product,
        "peak": peak_memory(),
        "phase": "optimization",
    }
    del energy, program

    def optimize() -> kn.Solution:
        return kn.optimize_density(system, functional, case.xc, tolerance=TOLERANCE, coarse=coarse)

    first, solution = timed(optimize)
    yield {
        "optimize_first": first,
        "energy": solution.energy,
        "converged": solution.converged,
        "reason": solution.reason,
        "steps": solution.steps,
        "peak": peak_memory(),
        "phase": "warm optimization and Kohn-Sham",
    }
    if case.size <= FAMILIES[case.system].largest_rks:
        kohn_sham = kohn_sham_runner(case)
        seconds, field = timed(kohn_sham)
        result = {"rks_energy": float(field.e_tot), "rks_converged": bool(field.converged)}
        # It may hold gigabytes of integrals.
        del field
        if seconds < case.seconds:
            result["optimize"], result["rks"] = alternating(case.seconds, optimize, kohn_sham)
        else:
            (result["optimize"],), result["rks"] = alternating(case.seconds, optimize), seconds
    else:
        (seconds,) = alternating(case.seconds, optimize)
        result = {"optimize": seconds}
    yield result | {"phase": "warm preparation"}
    del system, coarse, density, solution
    yield {"prepare": alternating(case.seconds, prepare)[0]}


def measure_precision(case: Case) -> Iterator[dict[str, Any]]:
    """Energies and times with float32 on the grid and float64 sums, beside float64.

    Energies of one density, that of the optimization in float64, and of optimizations in both.
    """
    yield {"phase": "preparation"}
    molecule = case.molecule
    functional = make_functional(case.functional, molecule)
    arguments = (molecule, case.basis, case.density_basis, case.grid_level)
    systems = {bits: kn.prepare(*arguments, dtype=f"float{bits}") for bits in (64, 32)}

    def optimize(bits: int) -> kn.Solution:
        return kn.optimize_density(systems[bits], functional, case.xc)

    yield {"phase": "optimization"}
    solutions = {bits: optimize(bits) for bits in systems}
    times = alternating(case.seconds, *(partial(optimize, bits) for bits in systems))
    yield {
        "error_optimized": 1e3 * (solutions[32].energy - solutions[64].energy),
        "optimize_64": times[0],
        "optimize_32": times[1],
        "converged": all(solution.converged for solution in solutions.values()),
        "phase": "energy and gradient",
    }
    functional = make_functional(case.functional, molecule, random_head=True)
    density = solutions[64].density
    programs, values = [], []
    for system in systems.values():
        energy = kn.total_energy(system, functional, case.xc)
        _, program = compiled(value_and_gradient, energy, density)
        programs.append(partial(program, energy, density))
        values.append(float(programs[-1]()[0]))
    times = alternating(case.seconds, *programs)
    yield {
        "error_fixed": 1e3 * (values[1] - values[0]),
        "gradient_64": times[0],
        "gradient_32": times[1],
    }


MEASURES = {
    "cost": measure_cost,
    "precision": measure_precision,
    "kohn-sham": measure_kohn_sham,
}


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    for part in MEASURES[case.kind](case):
        print(json.dumps(part), flush=True)


if __name__ == "__main__":
    main()
