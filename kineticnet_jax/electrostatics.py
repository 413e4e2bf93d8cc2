"""Classical Coulomb energies of electrons and nuclei."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kineticnet_jax.grid import in_blocks
from kineticnet_jax.matrix import GridMatrix
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.tree import TreeOperator
from kineticnet_jax.types import Charges, PerPoint, Points, Positions, Scalar


@jax.jit
def nuclear_attraction(
    charges: Charges | Float[Array, "atoms"], positions: Positions, points: Points
) -> PerPoint:
    """Potential of the nuclei on an electron, v(r) = -Σ_A Z_A / |r - R_A|.

    Args:
        charges: Z_A, or changes of them.
        positions: R_A in bohr.
        points: r in bohr, not on a nucleus.

    Returns:
        v in hartree.
    """
    z, r = jnp.asarray(charges), jnp.asarray(positions)

    def at(block: Float[Array, "block 3"]) -> Float[Array, "block"]:
        return -jnp.sum(z / jnp.linalg.norm(block[:, None] - r, axis=-1), axis=1)

    return jax.lax.map(at, in_blocks(jnp.asarray(points))).reshape(-1)


@jax.jit
def nuclear_repulsion(charges: Charges, positions: Positions) -> Scalar:
    """Repulsion of the nuclei, E_nn = ½ Σ_(A≠B) Z_A Z_B / |R_A - R_B|, in hartree.

    Args:
        charges: Z_A.
        positions: R_A in bohr.
    """
    z, r = jnp.asarray(charges), jnp.asarray(positions)
    same = jnp.eye(len(z), dtype=bool)
    distances = jnp.linalg.norm(r[:, None] - r[None] + same[..., None], axis=-1)
    return 0.5 * jnp.sum(jnp.where(same, 0.0, z[:, None] * z[None] / distances))


def hartree_energy(operator: GridMatrix | TreeOperator, weights: PerPoint, n: PerPoint) -> Scalar:
    """Hartree energy of a density on a grid, by density fitting in the Coulomb metric.

    γ_P = Σ_g w_g n_g V_P(r_g),   E_H = ½ γᵀ J⁻¹ γ = ½ |A γ|² with AᵀA = J⁻¹.

    Args:
        operator: A V, the orthonormalised auxiliary potentials on the grid, or what has the same
            products.
        weights: quadrature weights in bohr³.
        n: density in bohr⁻³.

    Returns:
        E_H in hartree.

    Reference: B. I. Dunlap, J. W. D. Connolly, J. R. Sabin, J. Chem. Phys. 71, 3396 (1979).
    """
    projections = operator @ (weights * n)
    return 0.5 * jnp.vdot(projections, projections)


def external_energy(potential: PerPoint, weights: PerPoint, n: PerPoint) -> Scalar:
    """Energy of the electrons in a local external potential, ∫ v n dr, in hartree.

    Args:
        potential: v on the grid in hartree.
        weights: quadrature weights in bohr³.
        n: density in bohr⁻³.
    """
    return integrate(weights, potential * n)
