"""What the random potentials do to the densities, and how exact the labels on the grid are.

Run `python experiments/reference_data/perturbations.py`; it writes perturbations.md and figures
beside itself.
"""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from kineticnet_jax import Molecule, reference
from kineticnet_jax.basis import coulomb_potential
from kineticnet_jax.data.config import MANY_WEAK, DataConfig, Family, Limits, PotentialKind
from kineticnet_jax.data.generate import generate_geometry, one_electron_space
from kineticnet_jax.data.geometries import draw_geometries
from kineticnet_jax.data.labels import ground_state_labels, kohn_sham_potential
from kineticnet_jax.data.potentials import Perturbation
from kineticnet_jax.data.spaces import residual_energy, sample_orbitals
from kineticnet_jax.density import OrbitalDensity
from kineticnet_jax.reference import build_mole, extract_basis
from kineticnet_jax.system import evaluate_flat

matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).parent
KINDS = (
    *MANY_WEAK,
    PotentialKind("uniform field", field=0.02),
    PotentialKind("dipole", dipole=0.5),
    PotentialKind("nuclear charges", charge_change=0.02),
    PotentialKind("orbital matrix", matrix=0.02),
)
WATER = Family(
    "H2O", "O\nH 1 r1\nH 1 r2 2 a", 3, {"r1": (0.8, 1.25), "r2": (0.8, 1.25), "a": (85, 130)}
)
HYDROGEN = Family("H2", "H\nH 1 r", 3, {"r": (0.5, 2.0)})
# The colours of Okabe and Ito, which everybody can tell apart.
COLOURS = dict(
    zip(
        (kind.name for kind in KINDS),
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000"),
        strict=True,
    )
)
MOLECULES = {
    "H2": ("H 0 0 0\nH 0 0 0.74", 0),
    "H2O": ("O 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692", 0),
    "HF": ("F 0 0 0\nH 0 0 0.917", 0),
    "CH4": ("C 0 0 0\nH .63 .63 .63\nH -.63 -.63 .63\nH -.63 .63 -.63\nH .63 -.63 -.63", 0),
    "LiH": ("Li 0 0 0\nH 0 0 1.6", 0),
}


def config(family: Family, kinds: tuple[PotentialKind, ...], potentials: int) -> DataConfig:
    """BLYP/cc-pVDZ at level 2; every sample is kept, to see what would be rejected."""
    everything = Limits(math.inf, -math.inf, math.inf, math.inf, math.inf)
    return DataConfig(
        "figures",
        (family,),
        kinds,
        potentials,
        limits=everything,
        density_basis="reference" if family.name == "H2" else "even-tempered-1.8",
    )


def histograms() -> list[str]:
    """Density change and kinetic energy shift for every kind, as figure and table."""
    lines = [
        "| molecule | kind | median ∫\\|Δn\\|/N (%) | largest (%) | mean \\|ΔT_s\\| (mHa) "
        "| largest (mHa) | √n fit, largest (%) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for row, family in zip(axes, (HYDROGEN, WATER), strict=True):
        for kind in KINDS:
            data = config(family, (kind,), 60)
            records = [generate_geometry(data, task) for task in draw_geometries(data)]
            change = 100 * np.concatenate([r.density_change[1:] for r in records])
            shift = 1e3 * np.concatenate(
                [r.kinetic_energy[1:] - r.kinetic_energy[0] for r in records]
            )
            fit = 100 * max(r.sqrt_fit_error.max() for r in records)
            lines.append(
                f"| {family.name} | {kind.name} | {np.median(change):.3f} | {change.max():.1f} "
                f"| {np.abs(shift).mean():.1f} | {np.abs(shift).max():.0f} | {fit:.2f} |"
            )
            style = {"histtype": "step", "linewidth": 1.5, "color": COLOURS[kind.name]}
            row[0].hist(change, np.logspace(-4, 2, 31), label=kind.name, **style)
            row[1].hist(np.abs(shift), np.logspace(-3, 4, 31), **style)
        row[0].set(
            xscale="log",
            xlabel=r"$\int|n - n_0|\,dr\,/\,N$ (%)",
            ylabel="samples",
            title=family.name,
        )
        row[1].set(
            xscale="log", xlabel=r"$|T_s[n] - T_s[n_0]|$ (mHa)", ylabel="samples", title=family.name
        )
    axes[0, 0].legend(fontsize=8)
    figure.savefig(HERE / "histograms.png", dpi=150)
    plt.close(figure)
    return lines


def difference_maps() -> None:
    """Density differences of water in its plane for weak and strong potentials."""
    fixed = {"r1": (0.96, 0.96), "r2": (0.96, 0.96), "a": (104.5, 104.5)}
    family = dataclasses.replace(WATER, geometries=1, variables=fixed, rotate=False)
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.5), layout="constrained")
    for row, kind in zip(axes, MANY_WEAK, strict=True):
        data = config(family, (kind,), 12)
        task = draw_geometries(data)[0]
        record = generate_geometry(data, task)
        positions = record.positions
        basis = extract_basis(build_mole(task.molecule, data.basis))
        side = np.linspace(-3.5, 3.5, 141)
        x, y = np.meshgrid(side, side)
        normal = np.cross(positions[1] - positions[0], positions[2] - positions[0])
        axis1 = (positions[1] + positions[2]) / 2 - positions[0]
        axis1 /= np.linalg.norm(axis1)
        axis2 = np.cross(normal / np.linalg.norm(normal), axis1)
        points = positions[0] + x[..., None] * axis1 + y[..., None] * axis2

        def density(orbitals, basis=basis, positions=positions, points=points, x=x):
            occupied = math.sqrt(2) * orbitals[:, :5]
            at = OrbitalDensity(positions, basis, occupied).at(
                None, jnp.asarray(points.reshape(-1, 3))
            )
            return np.asarray(at).reshape(x.shape)

        ground = density(record.orbitals[0])
        order = np.argsort(record.density_change[1:])[[1, 4, 7, 10]] + 1
        for panel, i in zip(row, order, strict=True):
            difference = density(record.orbitals[i]) - ground
            # The peak at a nucleus would hide everything else.
            scale = np.quantile(np.abs(difference), 0.995)
            image = panel.pcolormesh(
                x, y, difference, cmap="RdBu_r", vmin=-scale, vmax=scale, shading="gouraud"
            )
            for position in positions:
                relative = position - positions[0]
                panel.plot(relative @ axis1, relative @ axis2, "k+", markersize=8)
            percent = 100 * record.density_change[i]
            panel.set_title(rf"{kind.name}, $\int|n-n_0|dr/N$ = {percent:.2g} %", fontsize=9)
            panel.set(xlabel="x (bohr)", ylabel="y (bohr)", aspect="equal")
            figure.colorbar(
                image, ax=panel, label=r"$n - n_0$ (bohr$^{-3}$)", shrink=0.7, extend="both"
            )
    figure.savefig(HERE / "differences.png", dpi=130)
    plt.close(figure)


@jax.jit
def grid_matrix(space, potential):
    """⟨χ_μ|v_KS|χ_ν⟩ by quadrature, the xc part in its weak form."""
    functions = evaluate_flat(space.orbitals.functions, space.positions, space.grid.points)
    values = functions.reshape(len(functions), 4, -1)
    local = space.grid.weights * (potential.external + potential.hartree + potential.xc)
    vector = space.grid.weights * potential.xc_gradient.T
    mixed = jnp.einsum("mg,xg,nxg->mn", values[:, 0], vector, values[:, 1:])
    return (values[:, 0] * local) @ values[:, 0].T + mixed + mixed.T


def grid_table() -> list[str]:
    """How well the potential on the grid reproduces its matrix, between orbitals and as energy."""
    lines = [
        "| molecule | grid level | largest \\|ΔV_ai\\| (mHa) | as energy (mHa) "
        "| √n gradient against level 5, as energy (mHa) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (atoms, charge) in MOLECULES.items():
        molecule = Molecule.from_string(f"{len(atoms.splitlines())}\n\n{atoms}\n", charge)
        ground = reference.kohn_sham(molecule, "blyp", "cc-pvdz", 5)
        occupied = molecule.n_electrons // 2
        orbitals, energies = jnp.asarray(ground.orbitals), ground.orbital_energies
        gaps = energies[occupied:, None] - energies[None, :occupied]
        density_basis = "cc-pvdz" if name == "H2" else "even-tempered"
        auxiliary = build_mole(molecule, reference.AUXILIARY)
        root = reference.inverse_coulomb_root(auxiliary)
        gradients = {}
        for level in (5, 4, 3, 2, 1):
            space = one_electron_space(molecule, "cc-pvdz", density_basis, level)
            operator = root @ coulomb_potential(
                extract_basis(auxiliary), space.positions, space.grid.points
            )
            n, _, _ = jax.jit(sample_orbitals)(space, orbitals[:, :occupied])
            potential = jax.jit(kohn_sham_potential, static_argnames="xc")(
                space,
                "blyp",
                orbitals[:, :occupied],
                (operator @ (space.grid.weights * n)) @ operator,
                jnp.asarray(ground.hartree_matrix),
                jnp.asarray(ground.xc_matrix),
            )
            residual = grid_matrix(space, potential) - potential.matrix
            between = np.asarray(orbitals[:, occupied:].T @ residual @ orbitals[:, :occupied])
            nothing = Perturbation.none(len(space.charges), 1)
            labels = jax.jit(ground_state_labels)(space, potential, nothing)
            gradients[level] = labels.potential_gradient
            off = residual_energy(
                gradients[level] - gradients[5], space.density.kinetic_eigenvalues
            )
            lines.append(
                f"| {name} | {level} | {1e3 * np.abs(between).max():.4f} "
                f"| {2e3 * np.sum(between**2 / gaps):.1e} | {1e3 * float(off):.1e} |"
            )
    return lines


def main() -> None:
    table = histograms()
    difference_maps()
    text = [
        "# What the random potentials do to the densities",
        "",
        "`python experiments/reference_data/perturbations.py`: BLYP/cc-pVDZ, grid level 2, three "
        "geometries with 60 potentials of each kind, nothing rejected. The default mixture is two "
        "thirds weak, one third strong.",
        "",
        *table,
        "",
        "![histograms](histograms.png)",
        "",
        "![density differences of water in its plane](differences.png)",
        "",
        "## The potential on the grid",
        "",
        "Smooth external potentials are integrated on the grid of the labels, so on it they are "
        "exact. The Kohn-Sham potential is integrated by PySCF (nuclei and Hartree analytically); "
        "on the grid it is -Z/r, a density fit of the Hartree potential and the xc potential. "
        "Difference of the two between occupied and virtual orbitals, and as the energy "
        "2 Σ ΔV_ai² / (ε_a - ε_i) it stands for; last, the same for the label in density space, "
        "¼ Σ Δg² / (t + 1 Ha), against the finest grid.",
        "",
        *grid_table(),
        "",
    ]
    (HERE / "perturbations.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
