"""Learned functionals: a network, the closed-form reference functional, or their sum."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.base import Target
from kineticnet_jax.functionals.domain import Domain
from kineticnet_jax.functionals.kinetic import thomas_fermi, von_weizsaecker
from kineticnet_jax.functionals.moments import MomentConfig, MomentGeometry, moment_features
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.config import NetworkConfig, check_elements
from kineticnet_jax.nn.convolution import build_operators, operator_bytes
from kineticnet_jax.nn.moments import MomentNet, MomentNetConfig, in_float64
from kineticnet_jax.nn.neighbors import CHUNK, Neighbors, all_neighbors, find_neighbors
from kineticnet_jax.nn.network import Geometry, KineticNet, Params
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.safe import ratio
from kineticnet_jax.types import PerPoint, Scalar

OPERATOR_MEMORY = 1 << 30
"""Bytes up to which the filters of a geometry are kept; beyond, they are evaluated at every use."""

_ROOM = 0.02
"""Distance from the upper bound, in units of T_TF, from which on energies bend towards it."""

_CLOSE = 4e-5
"""The same for the lower bound, to which separate electron pairs come close: half of the samples
of two helium atoms in `four-electron.toml` have a T_P below 3e-3 T_TF."""


@dataclass(frozen=True)
class Provenance:
    """Where a functional comes from; all text, for tables and messages.

    Attributes:
        name: of the functional.
        details: pairs of a name and a value, such as the data and the command that made it.
    """

    name: str = "learned"
    details: tuple[tuple[str, str], ...] = ()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "coefficients", "domain", "geometry"],
    meta_fields=["network", "moments", "provenance"],
)
@dataclass(frozen=True)
class LearnedFunctional:
    """T_s[n] = T_vW[n] + T_P[n] or T_s[n] = T_θ[n], learned from data; a pytree.

    T_θ or T_P is a network, the reference functional c·Φ[n], or their sum. For any parameters
    and any density 0 ≤ T_P ≤ T_TF and 0 ≤ T_θ: the lower bound is exact, the upper one Lieb's
    conjecture. Between the bounds (4e-5 T_TF above zero and 2 % below T_TF) the energy is not
    changed.

    Attributes:
        network: what the network looks like, `KineticNet` or `MomentNet`, or None.
        params: its parameters.
        moments: the invariants of the reference functional, or None.
        coefficients: c in atomic units.
        provenance: where it comes from.
        domain: the densities it was trained on, if that is known.
        geometry: operators of one geometry, from `bind`; the functional then is for this geometry.

    Raises:
        InputError: if it is made of nothing, or of parts with different targets or elements.
    """

    network: NetworkConfig | MomentNetConfig | None = None
    params: Params = None
    moments: MomentConfig | None = None
    coefficients: Float[Array | np.ndarray, "*batch features"] | None = None
    provenance: Provenance = field(default_factory=Provenance)
    domain: Domain | None = None
    geometry: tuple[Geometry | None, MomentGeometry | None] | None = None

    def __post_init__(self) -> None:
        parts = [part for part in (self.network, self.moments) if part is not None]
        if not parts:
            raise InputError("a learned functional needs a network or a reference functional")
        if self.network is None or self.moments is None:
            return
        for name in ("target", "elements"):
            first, second = getattr(self.network, name), getattr(self.moments, name)
            if first != second:
                raise InputError(
                    f"network and reference functional differ in {name}: {first} and {second}"
                )
        if not self.network.signed:
            raise InputError("a network on top of a reference functional must be signed")

    @property
    def name(self) -> str:
        """For tables and messages."""
        return self.provenance.name

    @property
    def _config(self) -> NetworkConfig | MomentNetConfig | MomentConfig:
        config = self.network or self.moments
        assert config is not None
        return config

    @property
    def target(self) -> Target:
        """What is learned: "pauli" or "total"."""
        return self._config.target

    @property
    def elements(self) -> tuple[int, ...]:
        """Nuclear charges it can be used for."""
        return self._config.elements

    @property
    def vw_fraction(self) -> float:
        """The coefficient of T_vW beside the learned part."""
        return 1.0 if self.target == "pauli" else 0.0

    def bind(self, molecule: Molecule, grid: Grid, many: bool = True) -> "LearnedFunctional":
        """The functional with everything computed that depends on the geometry alone.

        Args:
            molecule: whose elements are checked.
            grid: on which densities will be given.
            many: whether it will be evaluated many times, so that it is worth the memory to keep
                the filters on the grid.

        Returns:
            The same functional, faster, for this geometry only.

        Raises:
            InputError: for an element that is not among `elements`.
        """
        check_elements(self.elements, molecule.charges)
        positions, points = np.asarray(molecule.positions), np.asarray(grid.points)
        return self._bound(
            lambda cutoff: find_neighbors(positions, points, cutoff), molecule, grid, many
        )

    def bind_traced(
        self, molecule: Molecule, grid: Grid, chunk: int = CHUNK
    ) -> "LearnedFunctional":
        """`bind` for arrays that are traced: every atom sees every point, all filters are kept.

        Args:
            molecule: whose elements are not checked.
            grid: on which densities will be given.
            chunk: largest number of points processed together.
        """
        size = (len(molecule.positions), len(grid.points))
        return self._bound(lambda _: all_neighbors(*size, chunk), molecule, grid, True)

    def _bound(
        self,
        neighbors_within: Callable[[float], Neighbors],
        molecule: Molecule,
        grid: Grid,
        many: bool,
    ) -> "LearnedFunctional":
        dtype = grid.weights.dtype
        positions = jnp.asarray(molecule.positions, dtype=dtype)
        network, moments = None, None
        if self.network is not None:
            filters, where = self.network.filters, (grid.points, positions)
            if isinstance(self.network, MomentNetConfig):
                where = in_float64((grid.points, molecule.positions))
            neighbors = neighbors_within(filters.cutoff)
            operators = None
            if many and operator_bytes(filters, neighbors, where[0].dtype) <= OPERATOR_MEMORY:
                operators = build_operators(filters, neighbors, *where)
            network = Geometry(neighbors, operators)
        if self.moments is not None:
            filters = self.moments.filters
            neighbors = neighbors_within(filters.cutoff)
            moments = MomentGeometry(neighbors)
            if many and operator_bytes(filters, neighbors, dtype) <= OPERATOR_MEMORY:
                moments = MomentGeometry.build(self.moments, neighbors, molecule, grid)
        return replace(self, geometry=(network, moments))

    def __call__(self, molecule: Molecule, grid: Grid, density: GridDensity) -> Scalar:
        """T_s in hartree, everything by quadrature."""
        rest = self.remainder(molecule, grid, density)
        if self.vw_fraction == 0:
            return rest
        return rest + integrate(grid.weights, von_weizsaecker(density.n, density.grad_n))

    def remainder(self, molecule: Molecule, grid: Grid, density: GridDensity) -> Scalar:
        """T_P (target "pauli") or T_s ("total") in hartree.

        Raises:
            InputError: for an element that is not among `elements`, if the charges are known.
        """
        return self.remainder_and_density(molecule, grid, density)[0]

    def remainder_and_density(
        self, molecule: Molecule, grid: Grid, density: GridDensity
    ) -> tuple[Scalar, PerPoint | None]:
        """`remainder` and its energy density, or None if a part of it has none.

        Raises:
            InputError: for an element that is not among `elements`, if the charges are known.
        """
        check_elements(self.elements, molecule.charges)
        network, moments = self.geometry or (None, None)
        energy, tau = jnp.zeros((), dtype=density.n.dtype), None
        if isinstance(self.network, MomentNetConfig):
            where = network or Geometry(all_neighbors(len(molecule.charges), len(density.n)))
            energy += MomentNet(self.network).apply(
                self.params, molecule, grid, density, where.neighbors, where.operators
            )
        elif self.network is not None:
            net = KineticNet(self.network)
            result = net.apply(self.params, molecule, grid, density, network)
            energy += result.energy
            if not self.network.signed:
                return energy, result.tau
        if self.moments is not None:
            features = moment_features(self.moments, molecule, grid, density, moments)
            energy += jnp.asarray(self.coefficients, dtype=features.dtype) @ features
        largest = integrate(grid.weights, thomas_fermi(density.n, density.grad_n))
        return _bounded(energy, largest, self.target), tau

    def kinetic_energy_density(
        self, molecule: Molecule, grid: Grid, density: GridDensity
    ) -> PerPoint:
        """Kinetic energy density τ in hartree/bohr³ on the grid, von Weizsäcker's included.

        Raises:
            InputError: for a moment network or a reference functional, which have none.
        """
        if self.network is None or self.network.signed:
            raise InputError(f"'{self.name}' is an energy only, it has no kinetic energy density")
        _, tau = self.remainder_and_density(molecule, grid, density)
        assert tau is not None
        if self.target == "pauli":
            tau = tau + von_weizsaecker(density.n, density.grad_n)
        return tau


def _bounded(energy: Scalar, largest: Scalar, target: Target) -> Scalar:
    """Bends an energy to between zero and, for the Pauli energy, T_TF.

    With x = E / T_TF: x from 4e-5 to 0.98, 4e-5 (1 + tanh(x / 4e-5 - 1)) below and correspondingly
    above; two derivatives are continuous.
    """
    x = ratio(energy, largest)
    y = jnp.where(x < _CLOSE, _CLOSE * (1 + jnp.tanh(jnp.minimum(x, _CLOSE) / _CLOSE - 1)), x)
    if target == "pauli":
        top = 1 - _ROOM
        y = jnp.where(x > top, top + _ROOM * jnp.tanh((jnp.maximum(x, top) - top) / _ROOM), y)
    return largest * y


def parameter_count(functional: LearnedFunctional) -> dict[str, int]:
    """Number of parameters of each part."""
    arrays: dict[str, Any] = {
        "network": functional.params,
        "reference functional": functional.coefficients,
    }
    return {
        name: sum(int(np.size(leaf)) for leaf in jax.tree.leaves(part))
        for name, part in arrays.items()
        if part is not None
    }
