"""Functions of atoms on the grid of a large molecule, near an atom directly, far away interpolated.

Seen from an atom, a function of it is smooth in a box that is small compared with its distance. So
an atom evaluates its functions on the points of the boxes around it, and on the nodes of a few
boxes of every size farther away (`boxes`).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.basis import Basis
from kineticnet_jax.boxes import NODES, Tree
from kineticnet_jax.boys import boys
from kineticnet_jax.grid import bucket_size
from kineticnet_jax.harmonics import gradient_coefficients, solid_harmonics
from kineticnet_jax.types import Points, Positions

NEGLIGIBLE = 1e-9
"""Values and gradients of basis functions (bohr^(-3/2), bohr^(-5/2)) that are taken as zero."""

CHUNK = 4096
"""Samples on which the functions of an atom are evaluated at a time."""

Kind = Literal["amplitude", "potential"]
"""What is sampled of a function: its value and gradient, or its Coulomb potential."""

Radial = tuple[Float[Array, "..."], ...]
"""Radial functions for each l, of shape (chunks, exponents, size)."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["exponents", "contraction", "index"],
    meta_fields=["l"],
)
@dataclass(frozen=True)
class Primitives:
    """The functions of one angular momentum on every atom of a group.

    Attributes:
        exponents: α_p in bohr⁻².
        contraction: coefficients of exp(-α_p r²) in each shell, normalisation included.
        index: places of the functions of each atom among those of the molecule.
        l: angular momentum.
    """

    exponents: Float[Array | np.ndarray, "exponents"]
    contraction: Float[Array | np.ndarray, "shells exponents"]
    index: Int[Array | np.ndarray, "atoms shells m"]
    l: int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["atoms", "primitives", "atom", "samples", "radial"],
    meta_fields=[],
)
@dataclass(frozen=True)
class AtomGroup:
    """Atoms with the same functions, and the samples on which they are evaluated.

    Attributes:
        atoms: their indices.
        primitives: their functions by angular momentum.
        atom: for every chunk of samples, which of these atoms it is for.
        samples: indices of grid points near the atom and of nodes of boxes far from it, these
            counted after the points. A place that only fills up a chunk has the index after all.
        radial: radial functions on these samples, or None to evaluate them at every use.
    """

    atoms: Int[Array | np.ndarray, "atoms"]
    primitives: tuple[Primitives, ...]
    atom: Int[Array | np.ndarray, "chunks"]
    samples: Int[Array | np.ndarray, "chunks size"]
    radial: Radial | None = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tree", "points", "positions", "groups", "mix"],
    meta_fields=["kind"],
)
@dataclass(frozen=True)
class TreeOperator:
    """The matrix of all functions on all grid points, which is never made.

    `coefficients @ operator` and `operator @ sources` are what they would be with the matrix of
    shape (functions, samples); the samples are flat, as in `DensityBasis.on_grid`.

    Attributes:
        tree: boxes of grid points.
        points: the grid points in bohr.
        positions: nuclear positions in bohr.
        groups: the atoms by the functions they have.
        mix: a matrix to be multiplied with from the left, or None.
        kind: "amplitude" (4 samples a point) or "potential" (one).
    """

    tree: Tree
    points: Points
    positions: Positions
    groups: tuple[AtomGroup, ...]
    mix: Float[Array, "rows functions"] | None
    kind: Kind

    # So that NumPy leaves products with its arrays to this class.
    __array_ufunc__ = None

    def __rmatmul__(self, coefficients: Float[Array, "rows"]) -> Float[Array, "samples"]:
        """Σ_μ c_μ χ_μ on the grid, in the precision of its points."""
        coefficients = coefficients.astype(self.points.dtype)
        if self.mix is not None:
            coefficients = coefficients @ self.mix
        return self._expand(coefficients)

    def __matmul__(self, sources: Float[Array, "samples"]) -> Float[Array, "rows"]:
        """Σ_g χ_μ(r_g) s_g for all functions."""
        size = sum(np.size(p.index) for group in self.groups for p in group.primitives)
        shape = jax.ShapeDtypeStruct((size,), sources.dtype)
        (projections,) = jax.linear_transpose(self._expand, shape)(sources)
        return projections if self.mix is None else self.mix @ projections

    def moved(self, positions: Positions, points: Points) -> "TreeOperator":
        """The operator with atoms and points a little elsewhere, in the same boxes.

        Args:
            positions: nuclear positions in bohr; may be traced.
            points: grid points in bohr; may be traced.
        """
        groups = tuple(replace(group, radial=None) for group in self.groups)
        return replace(self, positions=positions, points=points, groups=groups)

    def _expand(self, coefficients: Float[Array, "functions"]) -> Float[Array, "samples"]:
        places = _places(self)
        components = 4 if self.kind == "amplitude" else 1
        values = jnp.zeros((len(places), components), coefficients.dtype)
        for group in self.groups:
            weights = tuple(_weights(p, self.kind, coefficients) for p in group.primitives)
            values = _add_functions(group, self.kind, _sites(self, group), weights, places, values)
        near, far = values[: len(self.points)], values[len(self.points) : -1]
        return (near + self.tree.interpolate(self.points, far)).T.reshape(-1)


def tree_operator(
    basis: Basis,
    positions: Positions,
    points: Float[Array | np.ndarray, "points 3"],
    tree: Tree,
    kind: Kind,
    mix: Float[Array, "rows functions"] | None = None,
    memory: int = 0,
) -> TreeOperator:
    """The functions of a basis on the grid of a large molecule.

    Args:
        basis: the functions.
        positions: nuclear positions in bohr, on the host.
        points: grid points in bohr, on the host.
        tree: made of these points.
        kind: "amplitude" for values and gradients, "potential" for Coulomb potentials.
        mix: a matrix to be multiplied with from the left.
        memory: bytes up to which values are kept; beyond, they are evaluated at every use.

    Returns:
        The operator.
    """
    positions, points = np.asarray(positions), np.asarray(points)
    groups = []
    for atoms, primitives in _by_atom(basis):
        reach = _reach(primitives) if kind == "amplitude" else np.inf
        groups.append(AtomGroup(atoms, primitives, *_samples(tree, positions[atoms], reach)))
    entries = sum(
        group.samples.size * sum(len(p.exponents) for p in group.primitives) for group in groups
    )
    operator = TreeOperator(
        jax.tree.map(jnp.asarray, tree),
        jnp.asarray(points),
        jnp.asarray(positions),
        tuple(jax.tree.map(jnp.asarray, group) for group in groups),
        mix,
        kind,
    )
    if entries * points.dtype.itemsize > memory:
        return operator
    return _stored(operator)


@jax.jit
def _stored(operator: TreeOperator) -> TreeOperator:
    """The operator with the radial functions kept."""
    places = _places(operator)

    def stored(group: AtomGroup) -> AtomGroup:
        sites = _sites(operator, group)
        radial = jax.lax.map(
            lambda chunk: _radial(
                group.primitives, operator.kind, places[chunk[1]] - sites[chunk[0]]
            ),
            (group.atom, group.samples),
        )
        return replace(group, radial=radial)

    return replace(operator, groups=tuple(stored(group) for group in operator.groups))


def _by_atom(basis: Basis) -> list[tuple[Int[np.ndarray, "atoms"], tuple[Primitives, ...]]]:
    """Atoms with the same functions, and these."""
    place = np.empty(basis.size, dtype=np.int64)
    place[np.array(basis.order)] = np.arange(basis.size)
    # Of every atom the shells of each l: exponents, coefficients and places of the functions.
    shells: dict[int, dict[int, list[tuple[tuple, tuple, np.ndarray]]]] = {}
    start = 0
    for group in basis.groups:
        width = 2 * group.l + 1
        for atom, exponents, coefficients in zip(
            group.atom, group.exponents, group.coefficients, strict=True
        ):
            used = coefficients != 0
            shell = (tuple(exponents[used].tolist()), tuple(coefficients[used].tolist()))
            own = shells.setdefault(int(atom), {}).setdefault(group.l, [])
            own.append((*shell, place[start : start + width]))
            start += width
    kinds: dict[tuple, list[int]] = {}
    for atom, by_l in sorted(shells.items()):
        kind = tuple((l, tuple(shell[:2] for shell in same)) for l, same in by_l.items())
        kinds.setdefault(kind, []).append(atom)
    return [
        (
            np.array(atoms),
            tuple(
                Primitives(
                    *_contraction([shell[:2] for shell in same]),
                    np.array([[shell[2] for shell in shells[atom][l]] for atom in atoms]),
                    l,
                )
                for l, same in shells[atoms[0]].items()
            ),
        )
        for atoms in kinds.values()
    ]


def _contraction(
    shells: list[tuple[tuple[float, ...], tuple[float, ...]]],
) -> tuple[Float[np.ndarray, "exponents"], Float[np.ndarray, "shells exponents"]]:
    """All exponents of some shells, and their coefficients for each of them."""
    exponents = sorted({exponent for shell, _ in shells for exponent in shell})
    contraction = np.zeros((len(shells), len(exponents)))
    for row, (own, coefficients) in zip(contraction, shells, strict=True):
        row[[exponents.index(exponent) for exponent in own]] = coefficients
    return np.array(exponents), contraction


def _reach(primitives: tuple[Primitives, ...]) -> float:
    """Distance in bohr from which on all functions of an atom are negligible."""
    r = np.linspace(0.5, 100, 400)[:, None]
    largest = np.zeros(len(r))
    for p in primitives:
        # An upper bound of the value, and of the slope of the Gaussian.
        terms = r**p.l * (1 + 2 * r * p.exponents) * np.exp(-p.exponents * r**2)
        largest = np.maximum(largest, np.max(terms @ np.abs(p.contraction).T, axis=1))
    return float(r[np.flatnonzero(largest > NEGLIGIBLE)[-1], 0])


def _samples(
    tree: Tree, positions: Float[np.ndarray, "atoms 3"], reach: float
) -> tuple[Int[np.ndarray, "chunks"], Int[np.ndarray, "chunks size"]]:
    """Points of leaves near each atom, and nodes of the largest boxes far from it, in chunks.

    Returns:
        The atom of every chunk, and its samples; the number of chunks is a bucket.
    """
    points = len(tree.place)
    first = np.arange(len(tree.order)) == tree.place[tree.order]
    leaves = np.where(first, tree.order, -1).reshape(-1, tree.size)
    last = points + sum(len(centers) for centers in tree.centers) * NODES**3
    nodes = np.arange(points, last).reshape(-1, NODES**3)
    atoms, rows = [], []
    for atom, position in enumerate(positions):
        near, far = tree.seen_from(position, reach)
        own = leaves[near]
        own = np.concatenate([own[own >= 0], nodes[far].reshape(-1)])
        own = np.pad(own, (0, -len(own) % CHUNK), constant_values=last).reshape(-1, CHUNK)
        atoms += [atom] * len(own)
        rows.append(own)
    missing = bucket_size(max(len(atoms), 1)) - len(atoms)
    samples = np.pad(np.concatenate(rows), ((0, missing), (0, 0)), constant_values=last)
    return np.pad(np.array(atoms, dtype=np.int64), (0, missing)), samples


def _radial(
    primitives: tuple[Primitives, ...], kind: Kind, vectors: Float[Array, "points 3"]
) -> Radial:
    """exp(-α_p r²) for all primitives of each l, or (2π/α_p) F_l(α_p r²) of its potential."""
    r2 = jnp.sum(vectors**2, axis=-1)
    values = []
    for p in primitives:
        exponents = jnp.asarray(p.exponents, r2.dtype)[:, None]
        if kind == "amplitude":
            values.append(jnp.exp(-exponents * r2))
        else:
            values.append(2 * jnp.pi / exponents * boys(p.l, exponents * r2))
    return tuple(values)


def _weights(
    p: Primitives, kind: Kind, coefficients: Float[Array, "functions"]
) -> Float[Array, "atoms rows exponents"]:
    """What the radial functions are multiplied with, for the sums over harmonics that follow.

    For the amplitude these are Σ_m S_lm c_m R of its value, the same of its derivative by r², and
    for l > 0 those over S_(l-1,m') with ∇S_lm = Σ_m' D_(m,m') S_(l-1,m').
    """
    dtype = coefficients.dtype
    own = coefficients[jnp.asarray(p.index)]
    value = jnp.einsum("asm,sp->amp", own, jnp.asarray(p.contraction, dtype))
    if kind == "potential":
        return value
    rows = [value, -jnp.asarray(p.exponents, dtype) * value]
    if p.l > 0:
        lower = jnp.asarray(gradient_coefficients(p.l), dtype)
        slopes = jnp.einsum("amp,mxn->axnp", value, lower)
        rows.append(slopes.reshape(len(own), -1, slopes.shape[-1]))
    return jnp.concatenate(rows, axis=1)


def _sum_functions(
    primitives: tuple[Primitives, ...],
    kind: Kind,
    weights: list[Float[Array, "_ _"]],
    radial: Radial,
    vectors: Float[Array, "size 3"],
) -> Float[Array, "size components"]:
    """Σ_μ c_μ χ_μ and its gradient, or the potential, first over functions with the same S_lm."""
    harmonics = [solid_harmonics(l, vectors) for l in range(max(p.l for p in primitives) + 1)]
    zero = jnp.zeros(len(vectors), vectors.dtype)
    value, slope, gradient = zero, zero, jnp.zeros((3, len(vectors)), vectors.dtype)
    for p, weight, values in zip(primitives, weights, radial, strict=True):
        rows, width = weight @ values, 2 * p.l + 1
        value += jnp.sum(rows[:width] * harmonics[p.l], axis=0)
        if kind == "potential":
            continue
        slope += jnp.sum(rows[width : 2 * width] * harmonics[p.l], axis=0)
        if p.l > 0:
            slopes = rows[2 * width :].reshape(3, -1, len(vectors))
            gradient += jnp.sum(slopes * harmonics[p.l - 1], axis=1)
    if kind == "potential":
        return value[:, None]
    return jnp.concatenate([value[None], gradient + 2 * slope * vectors.T]).T


def _add_functions(
    group: AtomGroup,
    kind: Kind,
    sites: Float[Array, "atoms 3"],
    weights: tuple[Float[Array, "_ _ _"], ...],
    places: Float[Array, "samples 3"],
    total: Float[Array, "samples components"],
) -> Float[Array, "samples components"]:
    """Adds the functions of all atoms of a group on their samples."""

    def step(
        total: Float[Array, "samples components"], chunk: tuple[Any, ...]
    ) -> tuple[Float[Array, "samples components"], None]:
        atom, samples, radial = chunk
        vectors = places[samples] - sites[atom]
        if radial is None:
            radial = _radial(group.primitives, kind, vectors)
        own = [weight[atom] for weight in weights]
        return total.at[samples].add(
            _sum_functions(group.primitives, kind, own, radial, vectors)
        ), None

    frugal = jax.checkpoint(step, prevent_cse=False)
    total, _ = jax.lax.scan(frugal, total, (group.atom, group.samples, group.radial))
    return total


def _sites(operator: TreeOperator, group: AtomGroup) -> Float[Array, "atoms 3"]:
    """Positions of the atoms of a group."""
    return jnp.asarray(operator.positions)[jnp.asarray(group.atoms)]


def _places(operator: TreeOperator) -> Float[Array, "samples 3"]:
    """All grid points, all nodes of all boxes, and one place for samples that do not count."""
    points = jnp.asarray(operator.points)
    return jnp.concatenate([points, operator.tree.nodes, points[:1]])
