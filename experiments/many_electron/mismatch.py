"""What it costs that √n of a Kohn-Sham density is not in the basis of ψ, for the data of a rung.

Run `python experiments/many_electron/mismatch.py four-electron`; it prints a Markdown table. T_s is
replaced by the best that any functional could be there: T_vW, and T_P with its exact value and its
exact derivative at the Kohn-Sham density. What the minimum of the total energy over ψ then differs
from the Kohn-Sham energy is the error of the basis (and of the fit to √n in it), in mHa.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import kineticnet_jax as kn
from kineticnet_jax.data.config import DataConfig, load_config
from kineticnet_jax.data.generate import ground_state
from kineticnet_jax.data.geometries import draw_geometries
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.quadrature import integrate

HERE = Path(__file__).parent

GRID_LEVEL = 3
"""One above that of the labels."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["density", "pauli_energy", "slope"],
    meta_fields=["vw_fraction"],
)
@dataclass(frozen=True)
class Linearized:
    """T_vW + T_P[n₀] + ∫ δT_P/δn (n - n₀) dr.

    Attributes:
        density: n₀ on the grid.
        pauli_energy: T_P[n₀] in hartree.
        slope: its derivatives by n₀ and ∇n₀ on the grid.
        vw_fraction: 1.
    """

    density: kn.GridDensity
    pauli_energy: jax.Array
    slope: kn.GridDensity
    vw_fraction: float = 1.0

    @classmethod
    def exact(
        cls, system: kn.System, xc: str, density: kn.GridDensity, kinetic_energy: float
    ) -> "Linearized":
        """At a Kohn-Sham density, where δT_s/δn = μ - v_KS.

        Args:
            system: the molecule.
            xc: exchange-correlation functional.
            density: n₀.
            kinetic_energy: T_s[n₀] in hartree.
        """
        tau = von_weizsaecker(density.n, density.grad_n)
        pauli = kinetic_energy - integrate(system.grid.weights, tau)
        slope = jax.grad(kn.total_energy(system, "vw", xc))(density)
        return cls(density, pauli, jax.tree.map(jnp.negative, slope))

    def remainder(self, molecule: kn.Molecule, grid: kn.Grid, density: kn.GridDensity) -> jax.Array:
        """The part that is not T_vW, in hartree."""
        del molecule, grid
        change = jax.tree.map(jnp.subtract, density, self.density)
        products = jax.tree.map(jnp.vdot, self.slope, change)
        return self.pauli_energy + products.n + products.grad_n

    def __call__(self, molecule: kn.Molecule, grid: kn.Grid, density: kn.GridDensity) -> jax.Array:
        """T_s in hartree."""
        tau = von_weizsaecker(density.n, density.grad_n)
        return integrate(grid.weights, tau) + self.remainder(molecule, grid, density)


def mismatch(molecule: kn.Molecule, config: DataConfig) -> tuple[float, float]:
    """Minimum of the linearised energy minus the Kohn-Sham energy (Ha), and ∫|Δn| dr/N."""
    system = kn.prepare(molecule, config.basis, config.density_basis, GRID_LEVEL)
    exact = ground_state(config, molecule, GRID_LEVEL)
    density = kn.OrbitalDensity.from_kohn_sham(exact)
    on_grid = density.on_grid(system)
    functional = Linearized.exact(system, config.xc, on_grid, exact.components["kinetic"])
    start = kn.fit_sqrt_density(system, density)
    solution = kn.optimize_density(system, functional, config.xc, start)
    if not solution.converged:
        print(f"not converged: {solution.reason}")
    difference = jnp.abs(solution.density.on_grid(system).n - on_grid.n)
    change = float(integrate(system.grid.weights, difference)) / system.n_electrons
    return solution.energy - exact.energy, change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rung", choices=sorted(path.stem for path in HERE.glob("*.toml")))
    parser.add_argument("--geometries", type=int, default=3, help="of each family")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    config = load_config(HERE / f"{options.rung}.toml")
    print(f"{config.name}: {config.xc}/{config.basis}, ψ in {config.density_basis}\n")
    print("| family | geometries | largest \\|ΔE\\| (mHa) | mean ΔE | largest ∫\\|Δn\\| dr/N (%) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for family in config.families:
        tasks = [task for task in draw_geometries(config) if task.family == family.name]
        values = np.array([mismatch(task.molecule, config) for task in tasks[: options.geometries]])
        energies, changes = 1e3 * values[:, 0], 1e2 * values[:, 1]
        print(
            f"| {family.name} | {len(values)} | {np.abs(energies).max():.3f} | "
            f"{energies.mean():+.3f} | {changes.max():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
