"""Everything about a molecule that its orbital-free energy needs, as arrays made once."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.basis import Basis, coulomb_potential, evaluate_with_gradient
from kineticnet_jax.boxes import Tree
from kineticnet_jax.electrostatics import nuclear_attraction, nuclear_repulsion
from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.grid import Grid, molecular_grid
from kineticnet_jax.matrix import GridMatrix
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.tree import TreeOperator, tree_operator
from kineticnet_jax.types import PerPoint, Scalar

DENSITY_BASES = ("reference", "even-tempered")

DENSE_MEMORY = 1 << 30
"""Bytes up to which functions and potentials on the grid are matrices; beyond, trees of boxes."""

TREE_MEMORY = 1 << 30
"""Bytes up to which a tree keeps the values of its functions."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "functions",
        "on_grid",
        "overlap",
        "kinetic",
        "transform",
        "kinetic_eigenvalues",
    ],
    meta_fields=["name"],
)
@dataclass(frozen=True)
class DensityBasis:
    """The functions χ_μ in which ψ = √n is expanded.

    Attributes:
        functions: the Gaussian functions, for evaluation on other points.
        on_grid: χ, ∂_x χ, ∂_y χ and ∂_z χ on the grid. Of a large molecule, what has the same
            products and is no matrix.
        overlap: S_μν.
        kinetic: T_μν = ⟨χ_μ|-½∇²|χ_ν⟩ in hartree.
        transform: U with UᵀSU = 1 and UᵀTU diagonal, zero columns last (dropped combinations).
        kinetic_eigenvalues: diagonal of UᵀTU in hartree.
        name: the basis set.
    """

    functions: Basis
    on_grid: GridMatrix | TreeOperator
    overlap: Float[Array, "functions functions"]
    kinetic: Float[Array, "functions functions"]
    transform: Float[Array, "functions functions"]
    kinetic_eigenvalues: Float[Array, "functions"]
    name: str


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "molecule",
        "grid",
        "density_basis",
        "hartree_operator",
        "external_potential",
        "nuclear_repulsion",
        "external_field",
    ],
    meta_fields=["n_electrons", "basis", "grid_level"],
)
@dataclass(frozen=True)
class System:
    """A molecule with its grid, density basis and Coulomb operators; a pytree of arrays.

    Attributes:
        molecule: charges and positions.
        grid: quadrature points and weights.
        density_basis: the functions of ψ = √n on the grid.
        hartree_operator: orthonormalised auxiliary potentials on the grid, or what has the same
            products.
        external_potential: of the nuclei and of the external field on the grid in hartree.
        nuclear_repulsion: energy of the nuclei among themselves and in the external field in
            hartree.
        external_field: uniform electric field in hartree/(e bohr).
        n_electrons: number of electrons.
        basis: orbital basis of Kohn–Sham references and initial guesses.
        grid_level: level of the grid.
    """

    molecule: Molecule
    grid: Grid
    density_basis: DensityBasis
    hartree_operator: GridMatrix | TreeOperator
    external_potential: PerPoint
    nuclear_repulsion: Scalar
    external_field: Float[Array, "3"]
    n_electrons: int
    basis: str
    grid_level: int

    @property
    def dtype(self) -> np.dtype:
        """Precision of functions and densities on the grid."""
        return np.dtype(self.grid.weights.dtype)

    @property
    def total_dtype(self) -> np.dtype:
        """Precision of coefficients, energies and everything that is a sum over the grid."""
        return np.dtype(self.density_basis.overlap.dtype)


def prepare(
    molecule: Molecule,
    basis: str = "cc-pvdz",
    density_basis: str | None = None,
    grid_level: int = 3,
    dtype: np.typing.DTypeLike | None = None,
    external_field: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> System:
    """Computes all geometry-dependent arrays of an orbital-free calculation.

    Everything is computed in float64 and then rounded, see `cast`.

    Args:
        molecule: the molecule.
        basis: orbital basis of references and guesses: a name PySCF knows, "unc-" in front for its
            uncontracted form.
        density_basis: basis of √n: "reference" (the orbital basis itself), "even-tempered", or any
            basis name, see `reference.build_mole`; by default "reference" for two electrons, where
            the von Weizsäcker functional is then exact, and "even-tempered" for more.
        grid_level: 0 (coarse) to 5 (fine); level 2 is the least for energies.
        dtype: precision on the grid; by default float64 if JAX has it enabled, else float32.
        external_field: uniform electric field in hartree/(e bohr), see `in_field`.

    Returns:
        The system.

    Raises:
        InputError: for an unknown basis or grid level, an element without functions, or a field
            that is not three finite numbers.
    """
    # PySCF takes a second to import, which evaluating a functional on given arrays does not need.
    from kineticnet_jax import reference

    field = np.asarray(external_field, dtype=float)
    if field.shape != (3,) or not np.all(np.isfinite(field)):
        raise InputError(f"external_field must be three finite numbers, but is {external_field}")
    name = density_basis_name(molecule, basis, density_basis)
    dtype = _working_precision(dtype)
    with reference.LOCK:
        # For its errors: references and guesses will need this basis.
        reference.build_mole(molecule, basis)
        mol = reference.build_mole(molecule, name)
        auxiliary = reference.build_mole(molecule, reference.AUXILIARY)
        matrices = reference.overlap_and_kinetic(mol)
        root = reference.inverse_coulomb_root(auxiliary)
    with jax.enable_x64(True):
        positions = jnp.asarray(molecule.positions)
        grid = molecular_grid(molecule, grid_level)
        functions = reference.extract_basis(mol)
        on_grid, potentials = _operators(
            functions, reference.extract_basis(auxiliary), jnp.asarray(root), molecule, grid
        )
        density_basis_arrays = DensityBasis(
            functions,
            on_grid,
            jnp.asarray(matrices.overlap),
            jnp.asarray(matrices.kinetic),
            jnp.asarray(matrices.transform),
            jnp.asarray(matrices.kinetic_eigenvalues),
            name.lower(),
        )
        system = System(
            molecule,
            grid,
            density_basis_arrays,
            potentials,
            nuclear_attraction(molecule.charges, positions, grid.points),
            nuclear_repulsion(molecule.charges, positions),
            jnp.zeros(3),
            molecule.n_electrons,
            basis.lower(),
            grid_level,
        )
        system = in_field(system, jnp.asarray(field))
        if dtype == np.float64:
            return system
    return cast(system, dtype)


def _operators(
    functions: Basis,
    auxiliaries: Basis,
    root: Float[Array, "auxiliaries auxiliaries"],
    molecule: Molecule,
    grid: Grid,
) -> tuple[GridMatrix | TreeOperator, GridMatrix | TreeOperator]:
    """Functions of √n and Coulomb potentials on the grid, as matrices if they are small enough."""
    positions = jnp.asarray(molecule.positions)
    rows = 4 * functions.size + auxiliaries.size
    if rows * grid.weights.nbytes <= DENSE_MEMORY:
        return (
            functions_on_grid(functions, positions, grid.points),
            potentials_on_grid(auxiliaries, root, positions, grid.points),
        )
    tree = Tree.build(grid.points)
    return (
        tree_operator(functions, positions, grid.points, tree, "amplitude", memory=TREE_MEMORY),
        tree_operator(
            auxiliaries, positions, grid.points, tree, "potential", root, memory=TREE_MEMORY
        ),
    )


def in_field(system: System, field: Float[Array, "3"]) -> System:
    """The system in a uniform electric field F: electrons have the energy F·r, nuclei -Z F·R.

    Args:
        system: from `prepare`; a field it is in already stays and adds to this one.
        field: F in hartree/(e bohr); may be traced.
    """
    molecule = system.molecule
    nuclei = jnp.asarray(molecule.charges) @ jnp.asarray(molecule.positions)
    return replace(
        system,
        external_potential=system.external_potential + system.grid.points @ field,
        nuclear_repulsion=system.nuclear_repulsion - nuclei @ field,
        external_field=system.external_field + field,
    )


def density_basis_name(molecule: Molecule, basis: str, density_basis: str | None) -> str:
    """Name of the basis set of √n: see `prepare` for the arguments and the default."""
    if density_basis is None:
        density_basis = "reference" if molecule.n_electrons == 2 else "even-tempered"
    return basis if density_basis == "reference" else density_basis


def cast(system: System, dtype: np.typing.DTypeLike) -> System:
    """Rounds the arrays of a system.

    Grid, and functions and potentials on it, which are nearly all of the memory, get the precision
    that is asked for. All others are float64 where JAX has it: electrons are then counted, and
    energies summed up, in float64, also over values in float32.

    Args:
        system: from `prepare`.
        dtype: float32 or float64.
    """

    def convert(tree: Any, dtype: np.typing.DTypeLike) -> Any:
        def leaf(array: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
            if not np.issubdtype(array.dtype, np.floating):
                return array
            with jax.enable_x64(True):
                return jnp.asarray(array, np.dtype(dtype))

        return jax.tree.map(leaf, tree)

    basis = system.density_basis
    rounded = convert(system, jnp.result_type(float))
    return replace(
        rounded,
        grid=convert(system.grid, dtype),
        density_basis=replace(rounded.density_basis, on_grid=convert(basis.on_grid, dtype)),
        hartree_operator=convert(system.hartree_operator, dtype),
    )


def _working_precision(dtype: np.typing.DTypeLike | None) -> np.dtype:
    enabled = jnp.result_type(float) == np.float64
    if dtype is None and not enabled:
        warnings.warn(
            "float64 is off in JAX, so the system is float32 and energies are good to about 1 mHa; "
            'call jax.config.update("jax_enable_x64", True) first, or pass dtype="float32"',
            stacklevel=3,
        )
    chosen = np.dtype(dtype if dtype is not None else (np.float64 if enabled else np.float32))
    if chosen not in (np.float32, np.float64):
        raise unknown_name("dtype", str(chosen), ("float32", "float64"))
    if chosen == np.float64 and not enabled:
        raise unknown_name("dtype", "float64", ("float32",))
    return chosen


@jax.jit
def functions_on_grid(
    basis: Basis, positions: Float[Array, "atoms 3"], points: Float[Array, "points 3"]
) -> GridMatrix:
    """Functions and their gradients on points."""
    return GridMatrix.of(partial(evaluate_with_gradient, basis, positions), points, 4)


@jax.jit
def potentials_on_grid(
    auxiliaries: Basis,
    root: Float[Array, "auxiliaries auxiliaries"],
    positions: Float[Array, "atoms 3"],
    points: Float[Array, "points 3"],
) -> GridMatrix:
    """Combinations of the Coulomb potentials of functions on points.

    Args:
        auxiliaries: the functions.
        root: coefficients of the combinations, a row for each.
        positions: nuclear positions in bohr.
        points: where to evaluate, in bohr.
    """
    return GridMatrix.of(
        lambda block: root @ coulomb_potential(auxiliaries, positions, block), points
    )
