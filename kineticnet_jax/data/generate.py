"""One geometry of a data set: Kohn-Sham reference, external potentials, labels, checks."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax import reference
from kineticnet_jax.basis import coulomb_potential
from kineticnet_jax.data.config import DataConfig, Family, Limits, PotentialKind
from kineticnet_jax.data.geometries import GeometryTask
from kineticnet_jax.data.labels import (
    KohnShamPotential,
    ground_state_labels,
    kohn_sham_potential,
    perturbation_matrix,
    violations,
)
from kineticnet_jax.data.potentials import Perturbation, draw_perturbation, most_gaussians
from kineticnet_jax.data.spaces import FunctionSpace, OneElectronSpace, sample_orbitals
from kineticnet_jax.data.store import ENERGIES, FamilyRecord, GeometryRecord
from kineticnet_jax.data.visited import visited_orbitals
from kineticnet_jax.errors import ConvergenceError
from kineticnet_jax.grid import grid_template, molecular_grid
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import density_basis_name

SAMPLES_AT_A_TIME = 16
"""Potentials of one geometry whose labels are computed together."""

REASONS = {
    "not-finite": "a label is not a number",
    "not-converged": "the Kohn-Sham equations did not converge in this potential",
    "orbital-residual": "(T + V)_ai above the limit",
    "gap": "gap below the limit",
    "kinetic": "∫τ differs from T_s by more than the limit",
    "electrons": "∫n differs from N by more than the limit",
    "sqrt-fit": "√n does not fit the density basis",
}
"""Why a sample is rejected; the first that applies is counted."""

_STORED = (
    "kinetic_energy",
    "orbitals",
    "orbital_energies",
    "sqrt_coefficients",
    "potential_gradient",
    "orbital_residual",
    "gap",
    "kinetic_error",
    "electron_error",
    "sqrt_fit_error",
)


def family_record(config: DataConfig, name: str, molecule: Molecule) -> FamilyRecord:
    """What all geometries of a family share, from any one of them.

    Raises:
        InputError: for a basis that is unknown or lacks an element, or an element without a grid.
    """
    template = grid_template(tuple(int(z) for z in molecule.charges), config.grid_level)
    bases = (
        config.basis,
        density_basis_name(molecule, config.basis, config.density_basis),
        reference.AUXILIARY,
    )
    return FamilyRecord(
        name,
        molecule.charge,
        np.asarray(molecule.charges),
        template.owner,
        template.offsets,
        *(reference.extract_basis(reference.build_mole(molecule, basis)) for basis in bases),
    )


def one_electron_space(
    molecule: Molecule, basis: str, density_basis: str, grid_level: int
) -> OneElectronSpace:
    """All arrays that labels of a geometry need beside the potential, in float64.

    Args:
        molecule: the geometry.
        basis: orbital basis.
        density_basis: basis of √n, a name.
        grid_level: quadrature grid, 0 to 5.

    Raises:
        InputError: for an unknown basis or grid level, or an element without functions.
    """
    mol = reference.build_mole(molecule, basis)
    matrices = reference.overlap_and_kinetic(mol)
    density_mol, density_matrices = mol, matrices
    if density_basis.lower() != basis.lower():
        density_mol = reference.build_mole(molecule, density_basis)
        density_matrices = reference.overlap_and_kinetic(density_mol)
    with jax.enable_x64(True):
        orbitals, density = (
            FunctionSpace(
                reference.extract_basis(mole),
                jnp.asarray(integrals.transform),
                jnp.asarray(integrals.kinetic_eigenvalues),
            )
            for mole, integrals in ((mol, matrices), (density_mol, density_matrices))
        )
        return OneElectronSpace(
            jnp.asarray(molecule.charges),
            jnp.asarray(molecule.positions),
            molecular_grid(molecule, grid_level),
            orbitals,
            density,
            jnp.asarray(matrices.kinetic),
            jnp.asarray(reference.nuclear_attraction_matrices(mol)),
            molecule.n_electrons,
        )


def draw_perturbations(config: DataConfig, space: OneElectronSpace, seed: int) -> Perturbation:
    """The external potentials of a geometry, a batch with the ground state first."""
    nothing = Perturbation.none(len(space.charges), most_gaussians(config.potentials))
    first = jax.tree.map(lambda leaf: leaf[None], nothing)
    if config.potentials_per_geometry == 0:
        return first
    key = jax.random.key(seed, impl="threefry2x32")
    keys = jax.random.split(key, config.potentials_per_geometry)
    drawn = _draw_many(keys, config.potentials, space.charges, space.positions)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, drawn)


def ground_state(
    config: DataConfig,
    molecule: Molecule,
    grid_level: int | None = None,
    perturbation: Float[np.ndarray, "functions functions"] | None = None,
) -> reference.KohnSham:
    """The Kohn-Sham ground state of a molecule, solved like those of a data set.

    Args:
        config: of the data set.
        molecule: any molecule.
        grid_level: another one than that of the data set.
        perturbation: matrix of an external potential beside that of the nuclei, in hartree.

    Raises:
        ConvergenceError: if the Kohn-Sham equations do not converge.
    """
    return reference.kohn_sham(
        molecule,
        config.xc,
        config.basis,
        config.grid_level if grid_level is None else grid_level,
        perturbation=perturbation,
        density_fit=config.density_fit,
    )


def generate_geometry(config: DataConfig, task: GeometryTask) -> GeometryRecord:
    """Computes one geometry of a data set.

    Args:
        config: the data set.
        task: the geometry.

    Returns:
        The record, with the samples that passed all checks and the others counted.

    Raises:
        ConvergenceError: if the Kohn-Sham equations of the unperturbed geometry do not converge.
    """
    with jax.enable_x64(True):
        return _generate(config, task)


def _generate(config: DataConfig, task: GeometryTask) -> GeometryRecord:
    molecule = task.molecule
    density_basis = density_basis_name(molecule, config.basis, config.density_basis)
    ground = ground_state(config, molecule)
    space = one_electron_space(molecule, config.basis, density_basis, config.grid_level)
    (family,) = (one for one in config.families if one.name == task.family)
    perturbations = draw_perturbations(config, space, task.seed)
    count = len(perturbations.kind)
    if family.visited:
        # The first of them is none.
        none = jnp.zeros(count, int)
        perturbations = jax.tree.map(lambda leaf: leaf[none], perturbations)
    auxiliary = reference.build_mole(molecule, reference.AUXILIARY)
    root = jnp.asarray(reference.inverse_coulomb_root(auxiliary))
    potentials = coulomb_potential(
        reference.extract_basis(auxiliary), space.positions, space.grid.points
    )
    solutions = [ground]
    converged = np.ones(count, dtype=bool)
    if family.visited:
        solutions += _visited(config, family, molecule, count - 1, ground)
    elif config.mode == "self-consistent":
        solutions, converged = _self_consistent(config, molecule, space, perturbations, ground)
    stacked = [
        jnp.asarray(np.stack([getattr(solution, name) for solution in solutions]))
        for name in ("orbitals", "hartree_matrix", "xc_matrix")
    ]
    occupied = stacked[0][:, :, : space.occupied]
    coefficients, labels, density_change = _all_labels(
        space, config.xc, root, potentials, occupied, *stacked[1:], perturbations
    )
    values = {name: np.asarray(value) for name, value in labels.items()}
    reasons = _reasons(values, np.asarray(perturbations.matrix_strength), converged, config.limits)
    kept = np.flatnonzero(reasons == "")
    shared = np.arange(1) if len(solutions) == 1 else kept
    mol = reference.build_mole(molecule, config.basis)
    return GeometryRecord(
        family=task.family,
        index=task.index,
        split=task.split,
        seed=task.seed,
        rejected=dict(Counter(str(reason) for reason in reasons if reason)),
        positions=np.asarray(molecule.positions),
        grid_weights=np.asarray(space.grid.weights),
        overlap=reference.overlap_and_kinetic(mol).overlap,
        kinetic=np.asarray(space.kinetic),
        attraction=np.asarray(space.attraction),
        orbital_transform=np.asarray(space.orbitals.transform),
        orbital_kinetic_eigenvalues=np.asarray(space.orbitals.kinetic_eigenvalues),
        density_transform=np.asarray(space.density.transform),
        density_kinetic_eigenvalues=np.asarray(space.density.kinetic_eigenvalues),
        reference_energies=np.array(
            [
                [solution.energy, *(solution.components[name] for name in ENERGIES[1:])]
                for solution in solutions
            ]
        )[shared],
        reference_orbitals=np.asarray(occupied)[shared],
        hartree_matrix=np.asarray(stacked[1])[shared],
        xc_matrix=np.asarray(stacked[2])[shared],
        hartree_coefficients=np.asarray(coefficients)[shared],
        draw=kept,
        perturbation=jax.tree.map(lambda leaf: np.asarray(leaf)[kept], perturbations),
        density_change=np.asarray(density_change)[kept],
        **{name: values[name][kept] for name in _STORED},
    )


def _self_consistent(
    config: DataConfig,
    molecule: Molecule,
    space: OneElectronSpace,
    perturbations: Perturbation,
    ground: reference.KohnSham,
) -> tuple[list[reference.KohnSham], np.ndarray]:
    """Kohn-Sham solutions in every potential, and which of them converged.

    Where it does not converge the ground state stands in, for a sample that is rejected.
    """
    matrices = np.asarray(_perturbation_matrices(space, perturbations))
    solutions, converged = [ground], [True]
    for matrix in matrices[1:]:
        try:
            solution = ground_state(config, molecule, perturbation=matrix)
        except ConvergenceError:
            solution = None
        solutions.append(solution or ground)
        converged.append(solution is not None)
    return solutions, np.array(converged)


def _visited(
    config: DataConfig, family: Family, molecule: Molecule, count: int, ground: reference.KohnSham
) -> list[reference.KohnSham]:
    """Stand-ins for Kohn-Sham solutions: of one orbital each, and the potentials of its density."""
    orbitals = visited_orbitals(config, family, molecule, count)
    matrices = 2 * orbitals[:, :, None] * orbitals[:, None]
    potentials = reference.potential_matrices(
        molecule, config.xc, config.basis, config.grid_level, matrices, config.density_fit
    )
    unknown = dict.fromkeys(ground.components, np.nan)
    return [
        dataclasses.replace(
            ground,
            energy=np.nan,
            components=unknown,
            density_matrix=matrix,
            orbitals=np.pad(orbital[:, None], ((0, 0), (0, ground.orbitals.shape[1] - 1))),
            hartree_matrix=hartree,
            xc_matrix=xc,
        )
        for orbital, matrix, (hartree, xc) in zip(orbitals, matrices, potentials, strict=True)
    ]


def _reasons(
    values: dict[str, np.ndarray],
    matrix_strength: np.ndarray,
    converged: np.ndarray,
    limits: Limits,
) -> np.ndarray:
    """For every sample the first reason to reject it, or an empty string."""
    finite = np.ones(len(converged), dtype=bool)
    for name, value in values.items():
        # A random matrix is no local potential, and its gradient is left out on purpose.
        exempt = matrix_strength > 0 if name == "potential_gradient" else False
        finite &= np.isfinite(value).reshape(len(converged), -1).all(axis=1) | exempt
    failed = {
        "not-finite": ~finite,
        "not-converged": ~converged,
        **violations(values, limits),
    }
    return np.select(list(failed.values()), list(failed), default="")


@partial(jax.jit, static_argnames="mixture")
def _draw_many(
    keys: Array,
    mixture: tuple[PotentialKind, ...],
    charges: Array,
    positions: Float[Array, "atoms 3"],
) -> Perturbation:
    return jax.vmap(lambda key: draw_perturbation(key, mixture, charges, positions))(keys)


@jax.jit
def _perturbation_matrices(
    space: OneElectronSpace, perturbations: Perturbation
) -> Float[Array, "samples functions functions"]:
    return jax.lax.map(
        lambda p: perturbation_matrix(space, p), perturbations, batch_size=SAMPLES_AT_A_TIME
    )


@partial(jax.jit, static_argnames="xc")
def _all_labels(
    space: OneElectronSpace,
    xc: str,
    root: Float[Array, "auxiliaries auxiliaries"],
    potentials: Float[Array, "auxiliaries points"],
    orbitals: Float[Array, "potentials functions occupied"],
    hartree_matrices: Float[Array, "potentials functions functions"],
    xc_matrices: Float[Array, "potentials functions functions"],
    perturbations: Perturbation,
) -> tuple[
    Float[Array, "potentials auxiliaries"], dict[str, Float[Array, "..."]], Float[Array, "samples"]
]:
    """Hartree coefficients, labels of all samples, and their distance from the ground state."""
    weights = space.grid.weights

    def potential(
        orbitals: Float[Array, "functions occupied"],
        hartree_matrix: Float[Array, "functions functions"],
        xc_matrix: Float[Array, "functions functions"],
    ) -> tuple[Float[Array, "auxiliaries"], KohnShamPotential]:
        n, _, _ = sample_orbitals(space, orbitals)
        coefficients = root.T @ (root @ (potentials @ (weights * n)))
        hartree = coefficients @ potentials
        return coefficients, kohn_sham_potential(
            space, xc, orbitals, hartree, hartree_matrix, xc_matrix
        )

    arguments = (orbitals, hartree_matrices, xc_matrices)
    ground_density, _, _ = sample_orbitals(space, orbitals[0])

    def summary(
        kohn_sham: KohnShamPotential, perturbation: Perturbation
    ) -> tuple[dict[str, Float[Array, "..."]], Float[Array, ""]]:
        labels = ground_state_labels(space, kohn_sham, perturbation)
        change = integrate(weights, jnp.abs(labels.n - ground_density)) / space.n_electrons
        return {name: getattr(labels, name) for name in _STORED}, change

    if len(orbitals) == 1:
        coefficients, shared = potential(*(argument[0] for argument in arguments))
        labels, change = jax.lax.map(
            lambda p: summary(shared, p), perturbations, batch_size=SAMPLES_AT_A_TIME
        )
        return coefficients[None], labels, change

    def both(
        inputs: tuple,
    ) -> tuple[Float[Array, "auxiliaries"], dict[str, Float[Array, "..."]], Float[Array, ""]]:
        coefficients, own = potential(*inputs[:3])
        return coefficients, *summary(own, inputs[3])

    return jax.lax.map(both, (*arguments, perturbations), batch_size=SAMPLES_AT_A_TIME)
