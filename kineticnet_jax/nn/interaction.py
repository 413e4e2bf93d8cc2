"""Equivariant message passing between atoms, from the layers of e3nn-jax."""

from collections.abc import Callable
from functools import cache

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kineticnet_jax.nn.radial import geometric_sequence, log_gaussian_basis, polynomial_cutoff

SHORTEST = 0.7
"""Centre of the innermost radial function between atoms in bohr, a short bond of hydrogen."""

RADIAL_FUNCTIONS = 8

USUAL_NEIGHBORS = 4.0
"""Messages are divided by the square root of this number."""


def natural_irreps(features: int, degree: int) -> e3nn.Irreps:
    """`features` channels for each l up to `degree`, with the parity (-1)^l of Y_lm."""
    return e3nn.Irreps([(features, (l, (-1) ** l)) for l in range(degree + 1)])


def damp(x: e3nn.IrrepsArray, power: float) -> e3nn.IrrepsArray:
    """Shortens long vectors, x (1 + |x|²)^(-power), for each channel of each l.

    With the power ½ the result is bounded, so that products of features stay finite for any input.
    """
    squared = e3nn.norm(x, squared=True, per_irrep=True)
    return x * (1 + squared.array) ** (-power)


@cache
def couplings(degree: int) -> tuple[e3nn.Irreps, Float[np.ndarray, "left right products"]]:
    """All products of natural parity as one bilinear map, for one channel.

    It is e3nn's tensor product in one contraction; the dozens of small ones it is made of take a
    third of the compilation of a network.

    Args:
        degree: largest l of both factors and of the products.

    Returns:
        The irreps of the products, and C with (x ⊗ y)_k = Σ_ij C_ijk x_i y_j.
    """
    sizes = [2 * l + 1 for l in range(degree + 1)]
    first = np.cumsum([0, *sizes])
    irreps, columns = [], []
    for l, size in enumerate(sizes):
        for left, right in np.ndindex(len(sizes), len(sizes)):
            if abs(left - right) <= l <= left + right and (left + right + l) % 2 == 0:
                column = np.zeros((first[-1], first[-1], size))
                # Each product is as large as what it couples: e3nn's normalization "component".
                block = np.sqrt(size) * e3nn.clebsch_gordan(left, right, l)
                column[first[left] : first[left + 1], first[right] : first[right + 1]] = block
                columns.append(column)
                irreps.append((1, (l, (-1) ** l)))
    return e3nn.Irreps(irreps).regroup(), np.concatenate(columns, axis=-1)


class Interaction(nn.Module):
    """One layer of message passing with gates.

    Messages m_i = Σ_j w(r_ij, Z_i, Z_j) x_j ⊗ Y(r_ij), then x_i + gate(x_i, m_i, x_i ⊗ m_i).
    For an atom alone the products of its own features remain.

    Attributes:
        features: channels for each l.
        degree: largest l.
        hidden: width of the network that makes the weights w.
        cutoff: distance in bohr from which on atoms do not see each other.

    Reference: S. Batzner et al., Nat. Commun. 13, 2453 (2022), equation 9, for the messages.
    """

    features: int
    degree: int
    hidden: int
    cutoff: float

    @nn.compact
    def __call__(
        self,
        x: e3nn.IrrepsArray,
        embedding: Float[Array, "atoms embedding"],
        positions: Float[Array, "atoms 3"],
        senders: Int[Array, "pairs"],
        receivers: Int[Array, "pairs"],
        linked: Bool[Array, "pairs"],
    ) -> tuple[e3nn.IrrepsArray, None]:
        """One update of the features.

        Args:
            x: features of the atoms, shape (atoms, irreps).
            embedding: of their elements.
            positions: in bohr.
            senders: first atom of each pair.
            receivers: second atom of each pair.
            linked: false for pairs that are none.

        Returns:
            The new features, and nothing else, as a scan over layers needs it.
        """
        irreps = natural_irreps(self.features, self.degree)
        allowed = [ir for _, ir in irreps]
        vectors = jnp.where(linked[:, None], positions[receivers] - positions[senders], 1.0)
        r = jnp.linalg.norm(vectors, axis=-1)
        centres = geometric_sequence(SHORTEST, self.cutoff, RADIAL_FUNCTIONS)
        radial = log_gaussian_basis(r, jnp.asarray(centres, dtype=r.dtype))
        weights_in = jnp.concatenate([radial, embedding[senders], embedding[receivers]], axis=-1)
        harmonics = e3nn.spherical_harmonics(
            allowed, vectors, normalize=True, normalization="component"
        )
        sent = e3nn.flax.Linear(irreps, name="send")(x)
        products, coupling = couplings(self.degree)
        coupled = jnp.einsum(
            "pfi,pj,ijk->pfk",
            sent[senders].mul_to_axis(self.features).array,
            harmonics.array,
            jnp.asarray(coupling, r.dtype),
        )
        messages = _to_inner_multiplicity(e3nn.IrrepsArray(products, coupled))
        weights = nn.Dense(self.hidden, param_dtype=jnp.float32, name="radial_in")(weights_in)
        weights = nn.Dense(messages.irreps.num_irreps, param_dtype=jnp.float32, name="radial_out")(
            jax.nn.silu(weights)
        )
        inside = polynomial_cutoff(r, self.cutoff) * linked
        messages = messages * (weights * inside[:, None])
        received = e3nn.scatter_sum(messages, dst=receivers, output_size=len(positions))
        received = e3nn.flax.Linear(irreps, name="receive")(received / USUAL_NEIGHBORS**0.5)
        pair = (x + received, e3nn.flax.Linear(irreps, name="partner")(x + received))
        left, right = (damp(y, 0.5).mul_to_axis(self.features) for y in pair)
        coupled = jnp.einsum(
            "afi,afj,ijk->afk", left.array, right.array, jnp.asarray(coupling, r.dtype)
        )
        own = e3nn.IrrepsArray(products, coupled).axis_to_mul()
        together = e3nn.concatenate([x, received, own]).regroup()
        gates = e3nn.Irreps([(self.features * self.degree, "0e")])
        update = e3nn.flax.Linear((irreps.filter("0e") + gates + irreps[1:]).simplify())(together)
        gated = e3nn.gate(
            update,
            even_act=_normalized(jax.nn.silu),
            even_gate_act=_normalized(jax.nn.sigmoid),
            normalize_act=False,
        )
        return x + gated, None


@cache
def _normalized(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Scaled to a mean square of one for normal input, as e3nn does it anew in every call."""
    with jax.enable_x64(True):
        return e3nn.normalize_function(function)


def _to_inner_multiplicity(x: e3nn.IrrepsArray) -> e3nn.IrrepsArray:
    """Makes the axis before the last one the inner part of the multiplicities."""
    chunks = [jnp.moveaxis(chunk, 1, 2) for chunk in x.chunks]
    chunks = [chunk.reshape(len(chunk), -1, chunk.shape[-1]) for chunk in chunks]
    irreps = e3nn.Irreps(
        [(chunk.shape[1], ir) for chunk, (_, ir) in zip(chunks, x.irreps, strict=True)]
    )
    return e3nn.from_chunks(irreps, chunks, x.shape[:1], x.dtype)
