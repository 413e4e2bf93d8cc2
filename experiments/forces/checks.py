"""Forces, bond length, vibration, polarizability and dynamics of two electrons beside Kohn–Sham.

Run `python experiments/forces/checks.py`; it writes checks.md beside itself. Kohn–Sham is PySCF's,
BLYP/cc-pVDZ, with the response of the grid in its gradients.
"""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from pyscf import dft
from scipy.optimize import minimize_scalar

import kineticnet_jax as kn
from kineticnet_jax.ase import KineticNet
from kineticnet_jax.files import complete_file
from kineticnet_jax.reference import build_mole

jax.config.update("jax_enable_x64", True)

BASIS, XC = "cc-pvdz", "blyp"
FUNCTIONALS = ("vw", "two-electron")
PROTON = 1.007276 * units._amu / units._me
"""Mass in electron masses."""

MOLECULES = {
    "He": ("He 0 0 0", 0),
    "H2 0.74 Å": ("H 0 0 0\nH 0 0 0.74", 0),
    "H2 1.1 Å": ("H 0 0 0\nH 0 0 1.1", 0),
    "HeH+ 0.9 Å": ("He 0 0 0\nH 0 0 0.9", 1),
    "H3+ 0.9, 1.0 Å, 70°": ("H 0 0 0\nH 0.9 0 0\nH 0.34202 0.93969 0", 1),
}
STEPS, TIME_STEP = 200, 0.2
"""Of the dynamics; in femtoseconds."""

COMPILATIONS: list[float] = []
"""Seconds each of them took."""


def molecule(name: str) -> kn.Molecule:
    atoms, charge = MOLECULES[name]
    return kn.Molecule.from_string(f"{len(atoms.splitlines())}\n\n{atoms}", charge)


def hydrogen(length: float) -> kn.Molecule:
    """H2 with a bond length in Å."""
    return kn.Molecule.from_string(f"2\n\nH 0 0 0\nH 0 0 {length}")


def kohn_sham(place: kn.Molecule, field: tuple[float, ...] = (0.0, 0.0, 0.0)) -> dft.rks.RKS:
    mol = build_mole(place, BASIS)
    mean_field = dft.RKS(mol, xc=XC)
    mean_field.grids.level, mean_field.conv_tol = 4, 1e-12
    core = mean_field.get_hcore() + np.tensordot(field, mol.intor("int1e_r"), 1)
    mean_field.get_hcore = lambda *_: core
    mean_field.kernel()
    return mean_field


def kohn_sham_forces(mean_field: dft.rks.RKS) -> np.ndarray:
    gradient = mean_field.nuc_grad_method()
    gradient.grid_response = True
    return -gradient.kernel()


def own_forces(place: kn.Molecule, functional: str) -> np.ndarray:
    system = kn.prepare(place, BASIS)
    solution = kn.optimize_density(system, functional, XC, tolerance=1e-7)
    return np.asarray(kn.forces(system, functional, solution.density, XC))


def frequency(force: np.ndarray, back: np.ndarray, step: float) -> float:
    """Harmonic frequency in cm⁻¹ from the forces at bonds longer and shorter by a step in bohr."""
    constant = -(force[1, 2] - back[1, 2]) / (2 * step)
    return float(np.sqrt(constant / (PROTON / 2)) * units.Hartree / units.invcm)


def polarizability(place: kn.Molecule, strength: float = 1e-3) -> np.ndarray:
    """Of Kohn–Sham in bohr³, from dipole moments in two fields along each axis."""
    columns = []
    for direction in np.eye(3):
        plus, minus = (
            kohn_sham(place, tuple(sign * strength * direction)).dip_moment(unit="au", verbose=0)
            for sign in (1, -1)
        )
        columns.append((plus - minus) / (2 * strength))
    return np.stack(columns, axis=1)


def dynamics(name: str, functional: str) -> list[str]:
    """A row about the conservation of the energy and the time of a step."""
    place = molecule(name)
    atoms = Atoms(place.symbols, positions=place.positions * units.Bohr)
    atoms.calc = KineticNet(functional, charge=place.charge)
    verlet = VelocityVerlet(atoms, TIME_STEP * units.fs)
    verlet.run(2)
    compiled = len(COMPILATIONS)
    energies, start = [], time.perf_counter()
    for _ in range(STEPS):
        verlet.run(1)
        energies.append(atoms.get_total_energy() / units.Hartree)
    seconds = (time.perf_counter() - start) / STEPS
    compiled = len(COMPILATIONS) - compiled
    there = kn.Molecule.from_ase(atoms, place.charge)
    kohn_sham_forces(kohn_sham(there))
    start = time.perf_counter()
    kohn_sham_forces(kohn_sham(there))
    ratio = seconds / (time.perf_counter() - start)
    spread = 1e3 * float(np.ptp(energies))
    return [name, functional, f"{spread:.3f}", str(compiled), f"{seconds:.2f}", f"{ratio:.2f}"]


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)], *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines)]


def count_compilations(event: str, seconds: float, **_: object) -> None:
    """Listens to JAX."""
    if "backend_compile" in event:
        COMPILATIONS.append(seconds)


def main() -> None:
    """Writes all tables."""
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    lines = [
        "# Forces, bond length, vibration, polarizability and dynamics",
        "",
        "Written by `python experiments/forces/checks.py`. Two electrons, BLYP/cc-pVDZ; "
        "differences to PySCF's RKS at grid level 4, with ψ in the same basis.",
    ]

    exact = {name: kohn_sham_forces(kohn_sham(molecule(name))) for name in MOLECULES}
    rows = []
    for name in MOLECULES:
        for functional in FUNCTIONALS:
            found = own_forces(molecule(name), functional)
            largest = 1e3 * float(np.max(np.abs(found - exact[name])))
            scale = f"{1e3 * float(np.max(np.abs(exact[name]))):.1f}"
            rows.append([name, functional, scale, f"{largest:.4f}"])
            print(rows[-1], flush=True)
    heads = ["molecule", "functional", "largest force (mHa/bohr)", "largest difference (mHa/bohr)"]
    lines += table(heads, rows)

    energy = minimize_scalar(
        lambda length: kohn_sham(hydrogen(length)).e_tot, bracket=(0.7, 0.75, 0.8), tol=1e-5
    )
    step = 0.01
    bonds = [energy.x + sign * step * units.Bohr for sign in (1, -1)]
    frequencies = [frequency(*(kohn_sham_forces(kohn_sham(hydrogen(b))) for b in bonds), step)]
    alphas = [polarizability(hydrogen(energy.x))]
    rows = [["Kohn–Sham", f"{energy.x:.4f}", f"{frequencies[0]:.0f}", *_components(alphas[0])]]
    for functional in FUNCTIONALS:
        atoms = Atoms("H2", [(0, 0, 0), (0, 0, 0.8)], calculator=KineticNet(functional))
        BFGS(atoms, logfile=None).run(fmax=1e-4)
        length = atoms.get_distance(0, 1)
        bonds = [length + sign * step * units.Bohr for sign in (1, -1)]
        found = frequency(*(own_forces(hydrogen(b), functional) for b in bonds), step)
        # At one geometry, so that it is compared with itself.
        system = kn.prepare(hydrogen(energy.x), BASIS)
        solution = kn.optimize_density(system, functional, XC, tolerance=1e-7)
        alpha = np.asarray(kn.polarizability(system, functional, solution.density, XC))
        rows.append([functional, f"{length:.4f}", f"{found:.0f}", *_components(alpha)])
        print(rows[-1], flush=True)
    heads = ["H2", "bond (Å)", "frequency (cm⁻¹)", "α along the bond (bohr³)", "α across (bohr³)"]
    lines += table(heads, rows)

    rows = []
    for name in ("H2 1.1 Å", "H3+ 0.9, 1.0 Å, 70°"):
        for functional in FUNCTIONALS:
            rows.append(dynamics(name, functional))
            print(rows[-1], flush=True)
    lines += [
        "",
        f"{STEPS} steps of NVE dynamics, {TIME_STEP} fs each, from rest; compilations after the "
        "second step; time beside one of PySCF's energy and gradient in the same process.",
        *table(
            [
                "start",
                "functional",
                "spread of the energy (mHa)",
                "compilations",
                "s per step",
                "against PySCF",
            ],
            rows,
        ),
    ]
    packages = ", ".join(f"{p} {metadata.version(p)}" for p in ("jax", "pyscf", "ase"))
    lines += ["", f"{os.cpu_count()} cores, {platform.machine()}, {packages}."]
    with complete_file(Path(__file__).with_suffix(".md")) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _components(alpha: np.ndarray) -> list[str]:
    return [f"{alpha[2, 2]:.4f}", f"{(alpha[0, 0] + alpha[1, 1]) / 2:.4f}"]


if __name__ == "__main__":
    main()
