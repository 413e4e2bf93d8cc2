"""Equivariant message passing between atoms, from the layers of e3nn-jax."""

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
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
        messages = e3nn.tensor_product(sent[senders], harmonics, filter_ir_out=allowed)
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
        products = e3nn.tensor_product(left, right, filter_ir_out=allowed).axis_to_mul()
        together = e3nn.concatenate([x, received, products]).regroup()
        gates = e3nn.Irreps([(self.features * self.degree, "0e")])
        update = e3nn.flax.Linear((irreps.filter("0e") + gates + irreps[1:]).simplify())(together)
        return x + e3nn.gate(update, even_act=jax.nn.silu, even_gate_act=jax.nn.sigmoid), None
