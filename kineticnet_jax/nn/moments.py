"""A network that reads the kinetic energy off moments of the density around every atom.

The moments are integrals of fixed functions of the density, so that all a training needs to know of
a density are these numbers and their derivatives: nothing is evaluated on a grid while it runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.base import Target
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.config import check_elements, check_known_elements
from kineticnet_jax.nn.convolution import Filters, Operators, points_to_atoms
from kineticnet_jax.nn.neighbors import Neighbors
from kineticnet_jax.types import PerPoint, Positions, Scalar

Moments = list[Float[Array | np.ndarray, "..."]]
"""For l = 0, 1, …: the moments of every atom, those of all powers of one filter beside each other,
with 2l + 1 components each."""

FAINT = 1e-6
"""Density in bohr⁻³ below which powers of it become linear, so that derivatives stay small."""

BARRIER = 1.0
"""Hartree that an atom costs whose channels are, in the mean of squares, twice their limit."""

BEND = 0.02
"""Invariants s enter the nonlinear part as s / (1 + 0.02 s²)^½, so that it cannot run away."""


SHARED = ("partners",)
"""Parameters that all elements share."""


@dataclass(frozen=True)
class MomentNetConfig:
    """What a moment network looks like.

    Attributes:
        elements: nuclear charges it can be used for, in ascending order.
        target: "pauli" for T_s - T_vW, "total" for T_s.
        filters: of the moments.
        powers: p in ∫ n^p f_klm dr.
        channels: combinations of the moments of an atom for each l.
        hidden: width of the two hidden layers.
    """

    elements: tuple[int, ...]
    target: Target = "pauli"
    filters: Filters = field(
        default_factory=lambda: Filters((14, 10, 8, 6), first=0.04, last=4000.0, cutoff=9.0)
    )
    powers: tuple[float, ...] = (2 / 3, 1.0, 4 / 3, 5 / 3)
    channels: int = 48
    hidden: int = 64

    @property
    def signed(self) -> bool:
        """That its energy may have either sign: bounds are set outside."""
        return True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of moments of an atom for each l."""
        return tuple(count * len(self.powers) for count in self.filters.counts)

    @property
    def invariants(self) -> int:
        """Number of scalars of an atom that the hidden layers are given."""
        return len(self.sizes) * self.channels

    def check(self) -> None:
        """Finds settings no network can be made of.

        Raises:
            InputError: naming what to change.
        """
        self.filters.check()
        check_known_elements(self.elements)
        if self.target not in ("pauli", "total"):
            raise unknown_name("target", self.target, ("pauli", "total"))
        if not self.powers or not all(0.5 <= power <= 2 for power in self.powers):
            raise InputError(f"powers must be from 0.5 to 2, but are {self.powers}")
        for name in ("channels", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but is {getattr(self, name)}")


def density_moments(
    config: MomentNetConfig,
    neighbors: Neighbors,
    grid: Grid,
    positions: Positions,
    n: PerPoint,
    operators: Operators | None = None,
) -> Moments:
    """∫ n^p u(r) (√α_k r)^l exp(-α_k r²) Y_lm dr around every atom.

    n^p is n (n + 1e-6)^(p - 1) for finite derivatives where there is nothing.

    Args:
        config: filters and powers.
        neighbors: blocks of points with the atoms near them.
        grid: quadrature points and weights.
        positions: nuclear positions in bohr.
        n: density on these points in bohr⁻³.
        operators: the filters on these points; without, they are evaluated on the way.

    Returns:
        The moments in atomic units.
    """
    powers = jnp.asarray(config.powers, dtype=n.dtype)[:, None]

    def signal(inputs: tuple[PerPoint, PerPoint]) -> Float[Array, "powers points"]:
        weights, n = inputs
        return weights * n * (n + FAINT) ** (powers - 1)

    found = points_to_atoms(
        config.filters,
        neighbors,
        grid.points,
        positions,
        signal,
        (grid.weights, jnp.maximum(n, 0.0)),
        operators,
    )
    parts = [jnp.swapaxes(part, -1, -2) for part in config.filters.split(found)]
    return [part.reshape(*part.shape[:-3], -1, part.shape[-1]) for part in parts]


def in_float64(tree: Any) -> Any:
    """The same arrays in float64.

    Raises:
        InputError: if it is off in JAX.
    """
    if jnp.result_type(float) != np.float64:
        raise InputError(
            'a moment network needs float64: call jax.config.update("jax_enable_x64", True) first '
            '(systems may be prepared with dtype="float32")'
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=np.float64), tree)


def of_element(params: Any, element: Int[Array, ""] | int) -> Any:
    """The parameters of one element.

    Args:
        params: as in `MomentNet`; those that all elements share stay.
        element: its index.
    """
    return {
        name: part if name in SHARED else jax.tree.map(lambda leaf: leaf[element], part)
        for name, part in params.items()
    }


def mix(params: Any, moments: Moments) -> list[Float[Array, "atoms components channels"]]:
    """Channels of atoms of one element, linear in their moments.

    Args:
        params: of the element and of these moments; "mean" is not subtracted here.
        moments: of every atom.
    """
    return [
        along_last(matrix, jnp.swapaxes(part, 1, 2))
        for matrix, part in zip(params["mix"], moments, strict=True)
    ]


def along_last(
    matrix: Float[Array | np.ndarray, "new old"], x: Float[Array, "atoms components old"]
) -> Float[Array, "atoms components new"]:
    """A matrix times the last axis, as one product of matrices, which is faster on a CPU."""
    return (x.reshape(-1, x.shape[-1]) @ matrix.T).reshape(*x.shape[:-1], -1)


def read_out(params: Any, moments: Moments) -> Float[Array, "atoms"]:
    """Energies of atoms of one element: linear and quadratic invariants, and two hidden layers.

    Args:
        params: of the element and of these moments; "mean" is not subtracted here.
        moments: of every atom.
    """
    energy = params["bias"] + moments[0][..., 0] @ params["linear"]
    first, *rest = mix(params, moments)
    invariants = [first[:, 0]]
    for partners, mixed in zip(params["partners"], rest, strict=True):
        invariants.append(jnp.sum(mixed * along_last(partners, mixed), axis=1))
    s = jnp.concatenate(invariants, axis=-1)
    energy += s @ params["quadratic"]
    z = s / jnp.sqrt(1 + BEND * s**2)
    for weights, bias in params["hidden"]:
        z = jax.nn.silu(z @ weights + bias)
    return energy + z @ params["last"]


def by_element(
    function: Callable[[Any, Moments], Float[Array, "atoms *rest"]],
    params: Any,
    moments: Moments,
    element: Int[np.ndarray, "atoms"],
) -> Float[Array, "atoms *rest"]:
    """A function of atoms of one element, of atoms of any: those of an element go together.

    Args:
        function: of parameters of an element and of moments.
        params: as in `MomentNet`.
        moments: of every atom.
        element: index of its element; known while it is compiled.
    """
    rows = [np.flatnonzero(element == number) for number in np.unique(element)]
    found = [
        function(of_element(params, int(element[own[0]])), [part[own] for part in moments])
        for own in rows
    ]
    return jnp.concatenate(found)[np.argsort(np.concatenate(rows))]


def channel_squares(params: Any, moments: Moments) -> Float[Array, "atoms invariants"]:
    """Squared lengths of all channels of atoms of one element."""
    squares = [jnp.sum(part**2, axis=1) for part in mix(params, moments)]
    return jnp.concatenate(squares, axis=-1)


def barrier(params: Any, moments: Moments) -> Float[Array, "atoms"]:
    """Energies of atoms of one element that are far from all of the training.

    (q / limit - 1)₊² hartree, where q is the mean over the channels of their squared lengths in
    units of what is usual. It is zero at all densities of the training.
    """
    q = jnp.mean(channel_squares(params, moments) / params["usual"], axis=-1)
    return BARRIER * jnp.maximum(q / params["limit"] - 1, 0) ** 2


@dataclass(frozen=True)
class MomentNet:
    """The network as a pure function of its parameters.

    T = Σ_A f_Z(moments of A) is invariant under rotation, reflection, translation, permutation of
    like atoms and padding. Far from the densities of its training a barrier rises, so that an
    optimization that is lost comes back. It has no kinetic energy density.

    Attributes:
        config: what it looks like.
    """

    config: MomentNetConfig

    def init(self, seed: int) -> Any:
        """Random parameters with an energy of zero, for moments of order one.

        Args:
            seed: of the numbers.
        """
        random = np.random.default_rng(seed)
        config, elements = self.config, len(self.config.elements)

        def normal(*shape: int, fan: int) -> Float[np.ndarray, "..."]:
            return (random.normal(size=shape) / math.sqrt(fan)).astype(np.float32)

        shapes, channels, hidden = self.shapes(), config.channels, config.hidden
        zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        widths = (config.invariants, hidden)
        return zero | {
            "usual": zero["usual"] + 1,
            "limit": np.full(elements, np.inf, np.float32),
            "mix": [normal(elements, channels, size, fan=size) for size in config.sizes],
            "partners": [normal(channels, channels, fan=channels) for _ in config.sizes[1:]],
            "hidden": [
                (normal(elements, width, hidden, fan=width), normal(elements, hidden, fan=4))
                for width in widths
            ],
        }

    def shapes(self) -> Any:
        """Shapes and types of the parameters.

        Mean and linear maps are in float64: neighbouring filters are so alike that what matters of
        their moments are small differences.
        """
        config, elements = self.config, len(self.config.elements)
        channels, hidden = config.channels, config.hidden

        def of(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        return {
            "mean": of(elements, config.sizes[0], dtype=np.float64),
            "bias": of(elements, dtype=np.float64),
            "linear": of(elements, config.sizes[0], dtype=np.float64),
            "mix": [of(elements, channels, size, dtype=np.float64) for size in config.sizes],
            "partners": [of(channels, channels) for _ in config.sizes[1:]],
            "quadratic": of(elements, config.invariants),
            "hidden": [
                (of(elements, width, hidden), of(elements, hidden))
                for width in (config.invariants, hidden)
            ],
            "last": of(elements, hidden),
            "usual": of(elements, config.invariants),
            "limit": of(elements),
        }

    def apply(
        self,
        params: Any,
        molecule: Molecule,
        grid: Grid,
        density: GridDensity,
        neighbors: Neighbors,
        operators: Operators | None = None,
    ) -> Scalar:
        """The energy in hartree; pure, for `jax.jit`, `jax.grad`, `jax.vmap`.

        In float64 whatever the precision of the density is: what matters are small differences
        between moments of neighbouring filters.

        Args:
            params: as `shapes` says.
            molecule: charges and positions; a charge of zero is padding.
            grid: quadrature points and weights.
            density: on these points; its gradient is not used.
            neighbors: blocks of points with the atoms near them.
            operators: the filters on these points in float64, if they are known.

        Raises:
            InputError: for an element the network has no parameters of, if the charges are known,
                or if float64 is off in JAX.
        """
        config = self.config
        check_elements(config.elements, molecule.charges)
        params, grid, n, positions = in_float64((params, grid, density.n, molecule.positions))
        same = jnp.asarray(molecule.charges)[:, None] == jnp.asarray(config.elements)
        element, present = jnp.argmax(same, axis=1), jnp.any(same, axis=1)
        moments = density_moments(config, neighbors, grid, positions, n, operators)
        moments[0] -= params["mean"][element][..., None]

        def atom(moments: Moments, element: Int[Array, ""]) -> Scalar:
            own = of_element(params, element), [part[None] for part in moments]
            return jnp.sum(read_out(*own) + barrier(*own))

        return jnp.sum(jnp.where(present, jax.vmap(atom)(moments, element), 0))
