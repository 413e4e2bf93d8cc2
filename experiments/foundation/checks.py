"""Exact and cross checks of the energy and the optimizers beyond two interacting electrons.

Non-kinetic energies of Kohn–Sham densities against PySCF, two independent electrons of a nucleus,
and classical functionals with both optimizers. Writes checks.md beside this file.

    python experiments/foundation/checks.py
"""

from pathlib import Path

import jax

import kineticnet_jax as kn
from kineticnet_jax.files import complete_file
from kineticnet_jax.reference import kohn_sham

jax.config.update("jax_enable_x64", True)

WATER = "O 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692"
METHANE = "C 0 0 0\nH .63 .63 .63\nH -.63 -.63 .63\nH -.63 .63 -.63\nH .63 -.63 -.63"
AMMONIA = "N 0 0 0.1\nH 0 0.94 -0.25\nH 0.814 -0.47 -0.25\nH -0.814 -0.47 -0.25"
MOLECULES = {
    "He": "He 0 0 0",
    "H2": "H 0 0 0\nH 0 0 0.74",
    "HF": "F 0 0 0\nH 0 0 0.917",
    "H2O": WATER,
    "NH3": AMMONIA,
    "CH4": METHANE,
    "Ne": "Ne 0 0 0",
    "N2": "N 0 0 0\nN 0 0 1.098",
    "LiH": "Li 0 0 0\nH 0 0 1.6",
    "CO": "C 0 0 0\nO 0 0 1.128",
    "H2CO": "C 0 0 0\nO 0 0 1.205\nH 0 0.94 -0.58\nH 0 -0.94 -0.58",
    "HCl": "Cl 0 0 0\nH 0 0 1.275",
}
CLASSICAL = ("Ne", "HF", "H2O", "CH4", "N2", "LiH", "H2CO")
NUCLEI = {1: "H", 2: "He", 3: "Li", 5: "B", 8: "O", 10: "Ne"}


def molecule(atoms: str, charge: int = 0) -> kn.Molecule:
    return kn.Molecule.from_string(f"{len(atoms.splitlines())}\n\n{atoms}", charge)


def non_kinetic_rows() -> list[str]:
    """E_H + E_xc + E_ext + E_nn of the Kohn–Sham density, ours on the grid minus PySCF's."""
    rows = []
    for name, atoms in MOLECULES.items():
        for basis in ("cc-pvdz", "cc-pvtz"):
            state = kohn_sham(molecule(atoms), "blyp", basis)
            system = kn.prepare(molecule(atoms), basis, "reference")
            components = kn.total_energy(system, "tf").components(
                kn.OrbitalDensity.from_kohn_sham(state)
            )
            errors = {
                key: 1e3 * (float(value) - state.components[key])
                for key, value in components.items()
                if key != "kinetic"
            }
            total = sum(errors.values())
            rows.append(
                f"| {name} | {basis} | {errors['hartree']:+.4f} | {errors['external']:+.4f} | "
                f"{total:+.4f} |"
            )
            print(rows[-1], flush=True)
    return rows


def independent_electron_rows() -> list[str]:
    """Two electrons that do not interact, in -Z/r: T = Z², E = -Z²."""
    rows = []
    for charge, symbol in NUCLEI.items():
        ion = molecule(f"{symbol} 0 0 0", charge - 2)
        system = kn.prepare(ion, "sto-3g", "even-tempered", grid_level=4)
        solution = kn.optimize_density(system, "vw", "none", "hcore", hartree=False)
        kinetic = 1e3 * (solution.components["kinetic"] - charge**2)
        total = 1e3 * (solution.energy + charge**2)
        rows.append(f"| {charge} | {kinetic:+.4f} | {total:+.4f} | {solution.steps} |")
        print(rows[-1], flush=True)
    return rows


def classical_rows() -> list[str]:
    """Classical functionals in the even-tempered basis, from superposed atoms."""
    rows = []
    for name in CLASSICAL:
        system = kn.prepare(molecule(MOLECULES[name]))
        for functional in ("tf+vw", "lkt"):
            first, second = (
                kn.optimize_density(system, functional, method=method)
                for method in ("lbfgs", "newton")
            )
            converged = "yes" if first.converged and second.converged else "no"
            rows.append(
                f"| {name} | {functional} | {first.energy:.8f} | {converged} | {first.steps} | "
                f"{second.steps} | {second.energy - first.energy:+.1e} |"
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Runs all checks and writes the tables."""
    lines = [
        "# Checks of the energy and the optimizers",
        "",
        "Written by `python experiments/foundation/checks.py`.",
        "",
        "## Energy of Kohn–Sham densities without the kinetic part",
        "",
        "BLYP, grid level 3, ours minus PySCF's in mHa. PySCF's Hartree and external energies are",
        "exact integrals, its exchange-correlation energy is on the same grid and agrees to the",
        "last digit. Limit of the sum for cc-pVDZ: 0.05 mHa.",
        "",
        "| molecule | basis | Hartree | external | sum |",
        "| --- | --- | ---: | ---: | ---: |",
        *non_kinetic_rows(),
        "",
        "## Two independent electrons in -Z/r",
        "",
        "Even-tempered basis, grid level 4, errors in mHa against T = Z² and E = -Z². Limit of T:",
        "0.1 mHa.",
        "",
        "| Z | T - Z² (mHa) | E + Z² (mHa) | steps |",
        "| ---: | ---: | ---: | ---: |",
        *independent_electron_rows(),
        "",
        "## Classical functionals, both optimizers",
        "",
        "BLYP, even-tempered basis, grid level 3, superposed atoms to a gradient norm of 1e-6.",
        "Limits: 100 steps, energies within 1e-6 Ha of each other.",
        "",
        "| molecule | functional | E (Ha) | converged | steps lbfgs | steps newton | ΔE (Ha) |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: |",
        *classical_rows(),
    ]
    with complete_file(Path(__file__).with_suffix(".md")) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
