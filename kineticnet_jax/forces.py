"""Forces on the nuclei: the total energy differentiated through everything that moves with them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kineticnet_jax.basis import Basis
from kineticnet_jax.density import SqrtDensity
from kineticnet_jax.electrostatics import nuclear_attraction, nuclear_repulsion
from kineticnet_jax.energy import TotalEnergy
from kineticnet_jax.functionals.base import Functional, bind_functional
from kineticnet_jax.functionals.registry import load_functional
from kineticnet_jax.grid import grid_template, place_grid
from kineticnet_jax.system import System, functions_on_grid, in_field, potentials_on_grid
from kineticnet_jax.tree import TreeOperator
from kineticnet_jax.types import Positions, Scalar


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "density_slopes",
        "density_owner",
        "auxiliary",
        "auxiliary_root",
        "auxiliary_slopes",
        "auxiliary_owner",
        "grid_owner",
        "grid_offsets",
        "grid_weights",
        "grid_adjustment",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Motion:
    """What is needed to move the nuclei of a system, as arrays made once.

    Attributes:
        density_slopes: ⟨∇χ_μ|χ_ν⟩ and ⟨∇χ_μ|-½∇²|χ_ν⟩ of the density basis.
        density_owner: atom of each of its functions.
        auxiliary: auxiliary basis of the Hartree energy.
        auxiliary_root: A with AᵀA = J⁻¹.
        auxiliary_slopes: (∇P|Q).
        auxiliary_owner: atom of each auxiliary function.
        grid_owner: atom of each grid point.
        grid_offsets: points relative to their atoms in bohr.
        grid_weights: weights of the atomic rules in bohr³.
        grid_adjustment: sizes of the atoms in Becke's partition.
    """

    density_slopes: Float[Array, "2 3 functions functions"]
    density_owner: Int[Array, "functions"]
    auxiliary: Basis
    auxiliary_root: Float[Array, "auxiliaries auxiliaries"]
    auxiliary_slopes: Float[Array, "1 3 auxiliaries auxiliaries"]
    auxiliary_owner: Int[Array, "auxiliaries"]
    grid_owner: Int[Array, "points"]
    grid_offsets: Float[Array, "points 3"]
    grid_weights: Float[Array, "points"]
    grid_adjustment: Float[Array, "atoms atoms"]


def prepare_motion(system: System) -> Motion:
    """Derivatives of the integrals of a system, and its grid relative to the atoms.

    Args:
        system: from `prepare`.
    """
    from kineticnet_jax import reference

    molecule = system.molecule
    density = reference.matrix_slopes(
        reference.build_mole(molecule, system.density_basis.name), ("int1e_ipovlp", "int1e_ipkin")
    )
    auxiliary = reference.build_mole(molecule, reference.AUXILIARY)
    coulomb = reference.matrix_slopes(auxiliary, ("int2c2e_ip1",))
    template = grid_template(tuple(int(z) for z in molecule.charges), system.grid_level)
    return Motion(
        jnp.asarray(density.matrices),
        jnp.asarray(density.owner),
        reference.extract_basis(auxiliary),
        jnp.asarray(reference.inverse_coulomb_root(auxiliary)),
        jnp.asarray(coulomb.matrices),
        jnp.asarray(coulomb.owner),
        jnp.asarray(template.owner),
        jnp.asarray(template.offsets),
        jnp.asarray(template.weights),
        jnp.asarray(template.size_adjustment),
    )


def moved(system: System, motion: Motion, positions: Positions) -> System:
    """The system with its nuclei somewhere else, exact to first order in their displacements.

    Functions, grid and potentials are evaluated anew at the new positions; the matrices S, T and J
    between Gaussian functions are extrapolated with their exact derivatives. So values are right at
    the positions of the system itself, and first derivatives there, by the positions and mixed ones
    by the density too.

    Args:
        system: from `prepare`; an external field stays as it is.
        motion: from `prepare_motion` of the same system.
        positions: of the nuclei in bohr.
    """
    displacements = jnp.asarray(positions) - jnp.asarray(system.molecule.positions)
    grid = place_grid(
        jnp.asarray(positions),
        motion.grid_owner,
        motion.grid_offsets,
        motion.grid_weights,
        motion.grid_adjustment,
    )
    overlap, kinetic = _changes(motion.density_slopes, motion.density_owner, displacements)
    (metric,) = _changes(motion.auxiliary_slopes, motion.auxiliary_owner, displacements)
    root = motion.auxiliary_root
    # (J + δJ)⁻¹ = Aᵀ (1 - A δJ Aᵀ) A to first order.
    root = root - 0.5 * (root @ metric @ root.T) @ root
    basis = system.density_basis
    if isinstance(basis.on_grid, TreeOperator):
        on_grid: Any = basis.on_grid.moved(positions, grid.points)
    else:
        on_grid = functions_on_grid(basis.functions, positions, grid.points)
    if isinstance(system.hartree_operator, TreeOperator):
        operator: Any = replace(system.hartree_operator.moved(positions, grid.points), mix=root)
    else:
        operator = potentials_on_grid(motion.auxiliary, root, positions, grid.points)
    there = replace(
        system,
        molecule=replace(system.molecule, positions=positions),
        grid=grid,
        density_basis=replace(
            basis,
            on_grid=on_grid,
            overlap=basis.overlap + overlap,
            kinetic=basis.kinetic + kinetic,
        ),
        hartree_operator=operator,
        external_potential=nuclear_attraction(system.molecule.charges, positions, grid.points),
        nuclear_repulsion=nuclear_repulsion(system.molecule.charges, positions),
        external_field=jnp.zeros_like(system.external_field),
    )
    return in_field(there, system.external_field)


def _changes(
    slopes: Float[Array, "operators 3 functions functions"],
    owner: Int[Array, "functions"],
    displacements: Float[Array, "atoms 3"],
) -> Float[Array, "operators functions functions"]:
    """Changes of symmetric matrices: moving χ_μ by d adds -d·∇χ_μ to it."""
    half = -jnp.einsum("mx,oxmn->omn", displacements[owner], slopes)
    return half + jnp.swapaxes(half, 1, 2)


def forces(
    system: System,
    functional: Functional | str,
    density: SqrtDensity,
    xc: str = "blyp",
    motion: Motion | None = None,
) -> Float[Array, "atoms 3"]:
    """Forces on the nuclei, -dE/dR at fixed coefficients of ψ, in hartree/bohr.

    At a density that makes the energy stationary these are the derivatives of the optimized energy.
    The motion of basis functions (Pulay forces), of the grid and of its weights is included, as
    everything is differentiated.

    Args:
        system: from `prepare`.
        functional: kinetic energy functional or its name.
        density: an optimized density of it.
        xc: exchange-correlation functional.
        motion: from `prepare_motion`; computed if it is not given.

    Raises:
        InputError: for an unknown functional, or an element it cannot be used for.
    """
    if isinstance(functional, str):
        functional = load_functional(functional)
    # Its filters have to move with the atoms, so that they are not kept.
    functional = bind_functional(functional, system.molecule, system.grid, many=False)
    motion = prepare_motion(system) if motion is None else motion
    energy = TotalEnergy(system, functional, xc.lower())
    return -_gradient(energy, motion, density)


@jax.jit
def _gradient(energy: TotalEnergy, motion: Motion, density: SqrtDensity) -> Float[Array, "atoms 3"]:
    def at(positions: Positions) -> Scalar:
        return replace(energy, system=moved(energy.system, motion, positions))(density)

    return jax.grad(at)(jnp.asarray(energy.system.molecule.positions))
