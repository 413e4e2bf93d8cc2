"""The closed-form reference functional: linear in invariants of atom-centred density moments.

Its coefficients are the solution of a linear least-squares problem, `kineticnet_jax.fit`.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float

from kineticnet_jax.functionals.base import Target
from kineticnet_jax.functionals.kinetic import thomas_fermi
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.config import check_known_elements
from kineticnet_jax.nn.convolution import (
    Filters,
    Operators,
    build_operators,
    points_to_atoms,
)
from kineticnet_jax.nn.neighbors import Neighbors, all_neighbors
from kineticnet_jax.quadrature import integrate

POWERS = ("n", "τ_TF", "n^{4/3}")
"""Functions of the density whose spherical moments enter linearly."""


@dataclass(frozen=True)
class MomentConfig:
    """Which invariants a reference functional is made of.

    Attributes:
        elements: nuclear charges it can be used for, in ascending order.
        target: "pauli" for T_s - T_vW, "total" for T_s.
        filters: of the moments; l goes up to the number of counts minus one.
    """

    elements: tuple[int, ...]
    target: Target = "pauli"
    filters: Filters = field(
        default_factory=lambda: Filters((12, 12, 12, 12), first=0.03, last=1680.0, cutoff=10.0)
    )

    def check(self) -> None:
        """Finds settings no functional can be made of.

        Raises:
            InputError: naming what to change.
        """
        self.filters.check()
        check_known_elements(self.elements)

    @property
    def names(self) -> tuple[str, ...]:
        """What each feature is."""
        counts = self.filters.counts
        names = [f"number of {chemical_symbols[z]}" for z in self.elements]
        names += ["T_TF", "∫n^{4/3}"]
        for z in self.elements:
            symbol = chemical_symbols[z]
            names += [f"{symbol} ∫g_{k} {power}" for power in POWERS for k in range(counts[0])]
            for l, count in enumerate(counts):
                pairs = zip(*np.triu_indices(count), strict=True)
                names += [f"{symbol} F_{k}{l}·F_{j}{l}" for k, j in pairs]
        return tuple(names)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["neighbors", "linear", "quadratic"],
    meta_fields=[],
)
@dataclass(frozen=True)
class MomentGeometry:
    """The filters of one geometry.

    Attributes:
        neighbors: blocks of points with the atoms near them.
        linear: spherical filters, or None to evaluate them on the way.
        quadratic: filters of all l, or None.
    """

    neighbors: Neighbors
    linear: Operators | None = None
    quadratic: Operators | None = None

    @classmethod
    def build(
        cls, config: MomentConfig, neighbors: Neighbors, molecule: Molecule, grid: Grid
    ) -> "MomentGeometry":
        """All filters on all points."""
        positions = jnp.asarray(molecule.positions, dtype=grid.points.dtype)
        linear, quadratic = (
            build_operators(filters, neighbors, grid.points, positions)
            for filters in (_round(config.filters), config.filters)
        )
        return cls(neighbors, linear, quadratic)


def moment_features(
    config: MomentConfig,
    molecule: Molecule,
    grid: Grid,
    density: GridDensity,
    geometry: MomentGeometry | None = None,
) -> Float[Array, "features"]:
    """Invariants of the density.

    The number of atoms of each element, T_TF and ∫n^{4/3}; then for each element, summed over its
    atoms, ∫g_k n, ∫g_k τ_TF and ∫g_k n^{4/3} with g_k = u exp(-α_k r²), and Σ_m F_klm F_jlm (k ≤ j)
    with F_klm = ∫ n u (√α_k r)^l exp(-α_k r²) Y_lm dr.

    Args:
        config: which.
        molecule: charges and positions; a charge of zero is padding.
        grid: quadrature points and weights.
        density: on these points; its gradient is not used.
        geometry: from `MomentGeometry.build`; without, every atom sees every point.

    Returns:
        The features, in the order of `MomentConfig.names`; atomic units.
    """
    n = jnp.maximum(density.n, 0.0)
    positions = jnp.asarray(molecule.positions, dtype=n.dtype)
    if geometry is None:
        geometry = MomentGeometry(all_neighbors(len(positions), len(n)))
    tau = thomas_fermi(n, density.grad_n)
    exchange = _four_thirds(n)
    where = (geometry.neighbors, grid.points, positions)
    powers = (grid.weights * n, grid.weights * tau, grid.weights * exchange)
    linear = points_to_atoms(_round(config.filters), *where, jnp.stack, powers, geometry.linear)
    moments = points_to_atoms(
        config.filters, *where, lambda x: x[None], powers[0], geometry.quadratic
    )
    elements = jnp.asarray(molecule.charges)[:, None] == jnp.asarray(config.elements)
    elements = elements.astype(n.dtype)
    by_element = [jnp.einsum("ae,akp->epk", elements, linear).reshape(len(config.elements), -1)]
    for part in config.filters.split(moments):
        values = part[..., 0]
        first, second = np.triu_indices(values.shape[1])
        squares = jnp.sum(values[:, first] * values[:, second], axis=-1)
        by_element.append(elements.T @ squares)
    totals = [integrate(grid.weights, tau), integrate(grid.weights, exchange)]
    return jnp.concatenate(
        [
            jnp.sum(elements, axis=0),
            jnp.stack(totals),
            jnp.concatenate(by_element, axis=1).reshape(-1),
        ]
    )


def _round(filters: Filters) -> Filters:
    """The filters with l = 0."""
    return replace(filters, counts=filters.counts[:1])


def _four_thirds(n: Float[Array, "points"]) -> Float[Array, "points"]:
    """n^{4/3}, with finite second derivatives down to n = 0."""
    floor = float(jnp.finfo(n.dtype).tiny) ** 0.5
    vacuum = n < floor
    return jnp.where(vacuum, 0.0, jnp.where(vacuum, 1.0, n) ** (4 / 3))
