"""Contracted real solid-harmonic Gaussians on arbitrary points, and their Coulomb potentials."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.boys import boys
from kineticnet_jax.errors import InputError
from kineticnet_jax.harmonics import solid_harmonics

MAXIMUM_ANGULAR_MOMENTUM = 6

POTENTIAL_BLOCK = 256
"""Points for which Coulomb potentials are evaluated at a time."""

RadialFunction = Callable[[Float[Array, "shells points"]], Float[Array, "shells points"]]


@dataclass(frozen=True)
class Shell:
    """One contracted shell R(r) r^l Y_lm with R = Σ_p c_p exp(-α_p r²), on the host.

    Attributes:
        atom: index of the nucleus it is centred on.
        l: angular momentum.
        exponents: α_p in bohr⁻².
        coefficients: c_p, normalisation included.
    """

    atom: int
    l: int
    exponents: tuple[float, ...]
    coefficients: tuple[float, ...]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["atom", "exponents", "coefficients"],
    meta_fields=["l"],
)
@dataclass(frozen=True)
class ShellGroup:
    """All shells of one angular momentum; short contractions are padded with zero coefficients."""

    atom: Int[Array, "shells"] | Int[np.ndarray, "shells"]
    exponents: Float[Array, "shells primitives"] | Float[np.ndarray, "shells primitives"]
    coefficients: Float[Array, "shells primitives"] | Float[np.ndarray, "shells primitives"]
    l: int


@partial(jax.tree_util.register_dataclass, data_fields=["groups"], meta_fields=["order", "size"])
@dataclass(frozen=True)
class Basis:
    """A set of atom-centred Gaussian functions χ_μ.

    Attributes:
        groups: the shells, grouped by angular momentum.
        order: position of each basis function among the functions of the groups.
        size: number of functions.
    """

    groups: tuple[ShellGroup, ...]
    order: tuple[int, ...]
    size: int = field(default=0)

    @classmethod
    def from_shells(cls, shells: Sequence[Shell]) -> "Basis":
        """Groups shells for vectorised evaluation; the order of functions is that of the shells.

        Raises:
            InputError: for an angular momentum above 6 (i functions).
        """
        groups, order = [], np.zeros(sum(2 * shell.l + 1 for shell in shells), dtype=int)
        starts = np.cumsum([0] + [2 * shell.l + 1 for shell in shells])
        position = 0
        for l in sorted({shell.l for shell in shells}):
            if l > MAXIMUM_ANGULAR_MOMENTUM:
                raise InputError(f"basis functions with l = {l} are not supported, at most l = 6")
            members = [i for i, shell in enumerate(shells) if shell.l == l]
            for i in members:
                order[starts[i] : starts[i] + 2 * l + 1] = position + np.arange(2 * l + 1)
                position += 2 * l + 1
            length = max(len(shells[i].exponents) for i in members)
            exponents = np.ones((len(members), length))
            coefficients = np.zeros((len(members), length))
            for row, i in enumerate(members):
                exponents[row, : len(shells[i].exponents)] = shells[i].exponents
                coefficients[row, : len(shells[i].exponents)] = shells[i].coefficients
            atom = np.array([shells[i].atom for i in members])
            groups.append(ShellGroup(atom, exponents, coefficients, l))
        return cls(tuple(groups), tuple(int(i) for i in order), len(order))


@jax.jit
def evaluate(
    basis: Basis, positions: Float[Array, "atoms 3"], points: Float[Array, "points 3"]
) -> Float[Array, "functions points"]:
    """Values χ_μ(r_g) of the basis functions.

    Args:
        basis: the functions.
        positions: nuclear positions in bohr.
        points: where to evaluate, in bohr.

    Returns:
        χ in bohr^(-3/2), in the order of the basis.
    """
    displacements = points[None] - positions[:, None]
    r2 = jnp.sum(displacements**2, axis=-1)
    blocks = []
    for group in basis.groups:
        radial = _gaussian(group, r2[group.atom], 0)
        angular = solid_harmonics(group.l, displacements)[:, group.atom]
        blocks.append(_flatten(radial * angular))
    return _ordered(basis, blocks)


@jax.jit
def evaluate_with_gradient(
    basis: Basis, positions: Float[Array, "atoms 3"], points: Float[Array, "points 3"]
) -> Float[Array, "functions 4 points"]:
    """Values and gradients of the basis functions: [χ_μ, ∂_x χ_μ, ∂_y χ_μ, ∂_z χ_μ] at r_g.

    ∇(R S_lm) = R ∇S_lm + 2 r R' S_lm with R' = dR/d(r²).

    Args:
        basis: the functions.
        positions: nuclear positions in bohr.
        points: where to evaluate, in bohr.

    Returns:
        Values in bohr^(-3/2) and gradients in bohr^(-5/2).
    """
    displacements = points[None] - positions[:, None]
    r2 = jnp.sum(displacements**2, axis=-1)
    direction = 2 * jnp.moveaxis(displacements, -1, 1)[:, None]
    blocks = []
    for group in basis.groups:
        radial, slope = (_gaussian(group, r2[group.atom], k) for k in (0, 1))
        values, gradients = _harmonics_and_gradient(group.l, displacements)
        # Of every atom and m what R and dR/d(r²) are multiplied with: [S, ∇S] and 2 r S.
        values = jnp.swapaxes(values, 0, 1)[:, :, None]
        plain = jnp.concatenate([values, jnp.transpose(gradients, (2, 1, 0, 3))], axis=2)
        block = radial[:, None, None] * plain[group.atom]
        block = block.at[:, :, 1:].add(slope[:, None, None] * (direction * values)[group.atom])
        blocks.append(block.reshape(-1, 4, len(points)))
    return _ordered(basis, blocks)


@jax.jit
def evaluate_laplacian(
    basis: Basis, positions: Float[Array, "atoms 3"], points: Float[Array, "points 3"]
) -> Float[Array, "functions points"]:
    """Laplacians of the basis functions at r_g.

    ∇²(R S_lm) = S_lm [4 r² R'' + (4l + 6) R'] with R' = dR/d(r²), as S_lm is harmonic.

    Args:
        basis: the functions.
        positions: nuclear positions in bohr.
        points: where to evaluate, in bohr.

    Returns:
        ∇²χ in bohr^(-7/2).
    """
    displacements = points[None] - positions[:, None]
    r2 = jnp.sum(displacements**2, axis=-1)
    blocks = []
    for group in basis.groups:
        slope, curvature = (_gaussian(group, r2[group.atom], k) for k in (1, 2))
        radial = 4 * r2[group.atom] * curvature + (4 * group.l + 6) * slope
        angular = solid_harmonics(group.l, displacements)[:, group.atom]
        blocks.append(_flatten(radial * angular))
    return _ordered(basis, blocks)


@jax.jit
def coulomb_potential(
    basis: Basis, positions: Float[Array, "atoms 3"], points: Float[Array, "points 3"]
) -> Float[Array, "functions points"]:
    """Coulomb potentials of the basis functions, V_μ(r) = ∫ χ_μ(r') / |r - r'| dr'.

    For one primitive, V = (2π/α) F_l(αr²) S_lm(r) with the Boys function F_l.

    Args:
        basis: the functions, taken as charge densities.
        positions: nuclear positions in bohr.
        points: where to evaluate, in bohr.

    Returns:
        V in atomic units.

    Reference: T. Helgaker, P. Jørgensen, J. Olsen, Molecular Electronic-Structure Theory
        (Wiley, 2000), section 9.7, with Hobson's theorem.
    """

    def at_point(point: Float[Array, "3"]) -> Float[Array, "functions"]:
        displacements = (point - positions)[:, None]
        r2 = jnp.sum(displacements**2, axis=-1)
        blocks = []
        for group in basis.groups:
            exponents = jnp.asarray(group.exponents)
            weights = 2 * jnp.pi * jnp.asarray(group.coefficients) / exponents
            radial = jnp.sum(weights * boys(group.l, exponents * r2[group.atom]), axis=1)
            angular = solid_harmonics(group.l, displacements)[:, group.atom]
            blocks.append(_flatten(radial[:, None] * angular))
        return _ordered(basis, blocks)[:, 0]

    # Blocks of points that stay in the cache while the series of the Boys function is summed.
    return jax.lax.map(at_point, points, batch_size=POTENTIAL_BLOCK).T


def _gaussian(
    group: ShellGroup, r2: Float[Array, "shells points"], derivative: int
) -> Float[Array, "shells points"]:
    """Derivative of R = Σ_p c_p exp(-α_p r²) with respect to r², of the given order."""
    exponents, coefficients = jnp.asarray(group.exponents), jnp.asarray(group.coefficients)
    weights = coefficients * (-exponents) ** derivative
    gaussians = jnp.exp(-exponents[..., None] * r2[:, None])
    return jnp.sum(weights[..., None] * gaussians, axis=1)


def _harmonics_and_gradient(
    l: int, r: Float[Array, "atoms points 3"]
) -> tuple[Float[Array, "m atoms points"], Float[Array, "3 m atoms points"]]:
    value, push = jax.linearize(partial(solid_harmonics, l), r)
    unit = jnp.broadcast_to(jnp.eye(3, dtype=r.dtype)[:, None, None], (3, *r.shape))
    return value, jax.vmap(push)(unit)


def _flatten(block: Float[Array, "*first m shells points"]) -> Float[Array, "*first ms points"]:
    """Merges (m, shell) with the shell running slowest, as basis functions are counted."""
    block = jnp.swapaxes(block, -3, -2)
    return block.reshape(*block.shape[:-3], -1, block.shape[-1])


def _ordered(
    basis: Basis, blocks: list[Float[Array, "..."]]
) -> Float[Array, "*first functions points"]:
    """Functions of all groups in the order of the basis; by slices, as taking rows is slow."""
    rows = jnp.concatenate(blocks)
    order = np.array(basis.order)
    pieces = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    return jnp.concatenate([rows[piece[0] : piece[-1] + 1] for piece in pieces])
