"""Random external potentials: drawn, evaluated and recomputed as pure JAX functions."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from kineticnet_jax.data.config import PotentialKind
from kineticnet_jax.electrostatics import nuclear_attraction
from kineticnet_jax.types import Charges, PerPoint, Points, Positions

GROUND_STATE = -1
"""Kind of the potential that is not there."""

DIPOLE_DISTANCE = 6.0
"""Distance of a point dipole from a nucleus in bohr."""

DIPOLE_SOFTENING = 1.0
"""Radius in bohr within which the potential of a point dipole is softened."""


_Array = Array | np.ndarray


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "kind",
        "amplitudes",
        "centres",
        "widths",
        "field",
        "dipole",
        "dipole_position",
        "charge_change",
        "matrix_strength",
        "matrix_key",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Perturbation:
    """Parameters of one external potential, or of a batch of them with leading axes.

    What a kind does not have is zero, so that all kinds are one function of the same arrays.

    Attributes:
        kind: index into the mixture it was drawn from, -1 for none.
        amplitudes: a_k of the Gaussians in hartree.
        centres: R_k in bohr.
        widths: σ_k in bohr.
        field: uniform field F in hartree/bohr; the potential is F·r.
        dipole: point dipole p in e bohr.
        dipole_position: where it stands, in bohr.
        charge_change: ΔZ_A of the nuclei.
        matrix_strength: standard deviation of a random symmetric matrix in hartree.
        matrix_key: Threefry key of that matrix.
    """

    kind: Int[_Array, "*batch"]
    amplitudes: Float[_Array, "*batch gaussians"]
    centres: Float[_Array, "*batch gaussians 3"]
    widths: Float[_Array, "*batch gaussians"]
    field: Float[_Array, "*batch 3"]
    dipole: Float[_Array, "*batch 3"]
    dipole_position: Float[_Array, "*batch 3"]
    charge_change: Float[_Array, "*batch atoms"]
    matrix_strength: Float[_Array, "*batch"]
    matrix_key: UInt32[_Array, "*batch 2"]

    @classmethod
    def none(cls, atoms: int, gaussians: int) -> "Perturbation":
        """No perturbation, in arrays of the given sizes."""
        return cls(
            jnp.asarray(GROUND_STATE, dtype=jnp.int32),
            jnp.zeros(gaussians),
            jnp.zeros((gaussians, 3)),
            jnp.ones(gaussians),
            jnp.zeros(3),
            jnp.zeros(3),
            jnp.zeros(3),
            jnp.zeros(atoms),
            jnp.zeros(()),
            jnp.zeros(2, dtype=jnp.uint32),
        )


def most_gaussians(mixture: tuple[PotentialKind, ...]) -> int:
    """Largest number of Gaussians a potential of the mixture can have; at least one."""
    return max([1, *(kind.gaussians[1] for kind in mixture)])


@partial(jax.jit, static_argnames="mixture")
def draw_perturbation(
    key: Array, mixture: tuple[PotentialKind, ...], charges: Charges, positions: Positions
) -> Perturbation:
    """Draws one external potential for a molecule; vmap over keys for many.

    Args:
        key: random key.
        mixture: the kinds of potentials and how often each is drawn.
        charges: nuclear charges.
        positions: nuclear positions in bohr.

    Returns:
        Its parameters.
    """
    charges, positions = jnp.asarray(charges), jnp.asarray(positions)
    keys = iter(jax.random.split(key, 12))
    size = most_gaussians(mixture)
    weights = jnp.array([kind.weight for kind in mixture])
    kind = jax.random.choice(next(keys), len(mixture), p=weights / jnp.sum(weights))

    def of_kind(name: str) -> Array:
        return jnp.array([getattr(entry, name) for entry in mixture])[kind]

    low, high = of_kind("gaussians")
    count = jax.random.randint(next(keys), (), low, high + 1)
    longest = max(len(entry.amplitudes) for entry in mixture)
    scales = jnp.array([np.resize(entry.amplitudes, longest) for entry in mixture])[kind]
    lengths = jnp.array([len(entry.amplitudes) for entry in mixture])[kind]
    scale = scales[jax.random.randint(next(keys), (), 0, lengths)]

    narrow, wide = jnp.log(of_kind("widths"))
    widths = jnp.exp(jax.random.uniform(next(keys), (size,), minval=narrow, maxval=wide))
    normal = jax.random.normal(next(keys), (size,))
    amplitudes = jnp.where(jnp.arange(size) < count, scale * normal / widths, 0.0)
    atoms = jax.random.randint(next(keys), (size + 1,), 0, len(positions))
    on_nucleus = jax.random.bernoulli(next(keys), of_kind("centred"), (size, 1))
    steps = jax.random.normal(next(keys), (size + 1, 3))
    reach = jnp.minimum(2.0, 2 * widths)[:, None]
    centres = positions[atoms[:-1]] + jnp.where(on_nucleus, 0.0, reach * steps[:-1])
    direction = steps[-1] / jnp.linalg.norm(steps[-1])
    vectors = jax.random.normal(next(keys), (2, 3))
    return Perturbation(
        kind.astype(jnp.int32),
        amplitudes,
        centres,
        widths,
        of_kind("field") * vectors[0],
        of_kind("dipole") * vectors[1],
        positions[atoms[-1]] + DIPOLE_DISTANCE * direction,
        of_kind("charge_change") * charges * jax.random.normal(next(keys), (len(positions),)),
        of_kind("matrix"),
        jax.random.bits(next(keys), (2,), jnp.uint32),
    )


@jax.jit
def smooth_potential(perturbation: Perturbation, points: Points) -> PerPoint:
    """The part of a potential without singularities: Gaussians, uniform and dipole field.

    Args:
        perturbation: one potential.
        points: where, in bohr.

    Returns:
        v in hartree.
    """
    r2 = jnp.sum((points[:, None] - perturbation.centres) ** 2, axis=-1)
    gaussians = jnp.exp(-0.5 * r2 / perturbation.widths**2) @ perturbation.amplitudes
    relative = points - perturbation.dipole_position
    softened = jnp.sum(relative**2, axis=-1) + DIPOLE_SOFTENING**2
    dipole = (relative @ perturbation.dipole) / softened**1.5
    return gaussians + points @ perturbation.field + dipole


@jax.jit
def local_potential(perturbation: Perturbation, positions: Positions, points: Points) -> PerPoint:
    """The local external potential: `smooth_potential` and that of changed nuclear charges.

    A random matrix (`matrix_strength`) is not local and not part of it.

    Args:
        perturbation: one potential.
        positions: nuclear positions in bohr.
        points: where, in bohr, not on a nucleus.

    Returns:
        v in hartree.
    """
    smooth = smooth_potential(perturbation, points)
    return smooth + nuclear_attraction(perturbation.charge_change, positions, points)


def random_matrix(perturbation: Perturbation, size: int) -> Float[Array, "functions functions"]:
    """The random symmetric matrix between orthonormal functions, in hartree.

    Args:
        perturbation: one potential.
        size: number of functions.
    """
    key = jax.random.wrap_key_data(jnp.asarray(perturbation.matrix_key), impl="threefry2x32")
    square = jax.random.normal(key, (size, size))
    upper = jnp.triu(square)
    return jnp.asarray(perturbation.matrix_strength) * (upper + jnp.triu(square, 1).T)
