"""What keeps density optimizations where a functional is good: several ways side by side.

Run `python experiments/many_electron/stability.py four-electron/test-4.h5 FUNCTIONAL [OTHER ...]`
after `run.py four-electron`; it prints a Markdown table. FUNCTIONAL is a name or a folder such as
four-electron/stage-1/best, OTHER functionals of other trainings make an ensemble with it. Test
geometries are optimized from every guess

- with bounds and trust region, the library's default;
- from those runs, at the least gradient norm of all steps instead of the last step;
- with a barrier of β Σ max(0, d - 1)² where atoms are at distances d > 1 from the training;
- with the mean of the ensemble and its standard deviation as a barrier, if there are others;
- with each of the others alone.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np

import kineticnet_jax as kn
from kineticnet_jax.data.generate import ground_state
from kineticnet_jax.evaluate import GUESSES
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.quadrature import integrate

STIFFNESS = 0.01
"""β in hartree."""

COLLAPSE = -20.0
"""Energy in mHa from Kohn-Sham below which a run must not claim to have converged."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["members"],
    meta_fields=["penalty", "vw_fraction"],
)
@dataclass(frozen=True)
class Guarded:
    """The mean of functionals for one geometry, and something that keeps densities in place.

    Attributes:
        members: bound functionals of the target "pauli".
        penalty: of their energies and the density, in hartree.
        vw_fraction: 1.
    """

    members: tuple[kn.LearnedFunctional, ...]
    penalty: Callable[[jax.Array, kn.GridDensity], jax.Array]
    vw_fraction: float = 1.0

    def remainder(self, molecule: kn.Molecule, grid: kn.Grid, density: kn.GridDensity) -> jax.Array:
        """The mean of T_P and the penalty in hartree."""
        energies = jnp.stack([one.remainder(molecule, grid, density) for one in self.members])
        return jnp.mean(energies) + self.penalty(energies, density)

    def __call__(self, molecule: kn.Molecule, grid: kn.Grid, density: kn.GridDensity) -> jax.Array:
        """T_s and the penalty in hartree."""
        tau = von_weizsaecker(density.n, density.grad_n)
        return integrate(grid.weights, tau) + self.remainder(molecule, grid, density)


def unfamiliar(
    distances: Callable[[kn.GridDensity], jax.Array], _: jax.Array, density: kn.GridDensity
) -> jax.Array:
    """β Σ max(0, d - 1)² over the atoms."""
    return STIFFNESS * jnp.sum(jnp.maximum(distances(density) - 1, 0) ** 2)


def disagreement(energies: jax.Array, _: kn.GridDensity) -> jax.Array:
    """The standard deviation of the energies; smooth where they agree."""
    return jnp.sqrt(jnp.var(energies) + 1e-10)


def guarded(
    system: kn.System, functional: kn.LearnedFunctional, others: list[kn.LearnedFunctional]
) -> dict[str, kn.Functional]:
    """All functionals that are compared on a system."""
    bound = [one.bind(system.molecule, system.grid) for one in (functional, *others)]
    ways: dict[str, kn.Functional] = {"bounds and trust region": bound[0]}
    if functional.domain is not None:
        distances = functional.domain.measure(system.molecule, system.grid)
        ways["barrier around the training"] = Guarded((bound[0],), partial(unfamiliar, distances))
    if others:
        ways["ensemble with its deviation"] = Guarded(tuple(bound), disagreement)
        ways |= {f"other {i}": one for i, one in enumerate(bound[1:], 1)}
    return ways


def outcomes(
    dataset: kn.Dataset,
    geometry: int,
    functional: kn.LearnedFunctional,
    others: list[kn.LearnedFunctional],
    guesses: tuple[tuple[str, int], ...],
) -> dict[str, list[tuple[bool, float, float, int]]]:
    """Converged, E - E_KS (mHa), ∫|Δn| dr/N and steps of each run, by what keeps it in place."""
    config, molecule = dataset.config, dataset.molecule(geometry)
    system = kn.prepare(molecule, config.basis, config.density_basis, config.grid_level)
    exact = ground_state(config, molecule)
    density = kn.OrbitalDensity.from_kohn_sham(exact).on_grid(system).n
    starts = [kn.initial_density(system, guess, seed) for guess, seed in guesses]
    found: dict[str, list[tuple[bool, float, float, int]]] = {}
    for name, one in guarded(system, functional, others).items():
        for start in starts:
            solution = kn.optimize_density(system, one, config.xc, start)
            change = jnp.abs(solution.density.on_grid(system).n - density)
            error = 1e3 * (solution.energy - exact.energy)
            moved = float(integrate(system.grid.weights, change)) / system.n_electrons
            row = (solution.converged, error, moved, solution.steps)
            found.setdefault(name, []).append(row)
            if name == "bounds and trust region":
                history = solution.history
                least = int(np.nanargmin(history.gradient_norm))
                error = 1e3 * (float(history.energy[least]) - exact.energy)
                row = (solution.converged, error, float("nan"), least)
                found.setdefault("least gradient norm", []).append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="test data of a run")
    parser.add_argument("functional", help="name or folder")
    parser.add_argument("others", nargs="*", help="names or folders of the rest of an ensemble")
    parser.add_argument("--geometries", type=int, default=2, help="of each family")
    parser.add_argument("--guesses", type=int, default=5, help=f"of {len(GUESSES)}")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    dataset = kn.Dataset(options.data)
    functional, *others = map(kn.load_functional, (options.functional, *options.others))
    rows: dict[str, list[tuple[bool, float, float, int]]] = {}
    for family in dataset.families:
        for geometry in dataset.select(family=family).geometries[: options.geometries]:
            found = outcomes(dataset, geometry, functional, others, GUESSES[: options.guesses])
            for name, values in found.items():
                rows.setdefault(name, []).extend(values)
    heads = ("converged (%)", "E MAE (mHa)", "largest", "∫\\|Δn\\| dr/N (%)")
    heads = ("what keeps densities in place", "runs", *heads, "collapsed, but converged", "steps")
    print("| " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * (len(heads) - 1))
    for name, values in rows.items():
        converged, energy, moved, steps = (np.array(column) for column in zip(*values, strict=True))
        collapsed = np.sum(converged & (energy < COLLAPSE))
        cells = (100 * np.mean(converged), np.mean(np.abs(energy)), np.max(np.abs(energy)))
        cells = (*(f"{cell:.2f}" for cell in (*cells, 100 * np.mean(moved))), collapsed)
        print(
            "| " + " | ".join(map(str, (name, len(values), *cells, round(np.mean(steps))))) + " |"
        )


if __name__ == "__main__":
    main()
