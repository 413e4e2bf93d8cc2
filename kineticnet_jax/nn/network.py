"""KineticNet: a kinetic energy functional as a network of point convolutions.

Embedding of the density at every point, encoder from points to atoms, interaction between atoms,
decoder from atoms to points, and a head that reads off the kinetic energy density.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kineticnet_jax.functionals.kinetic import thomas_fermi
from kineticnet_jax.grid import Grid, GridDensity
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.nn.config import NetworkConfig, check_elements
from kineticnet_jax.nn.convolution import Filters, Operators, atoms_to_points, points_to_atoms
from kineticnet_jax.nn.interaction import Interaction, damp, natural_irreps
from kineticnet_jax.nn.neighbors import CHUNK, Neighbors, all_neighbors
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.safe import ratio
from kineticnet_jax.types import Scalar

Params = Any
"""A pytree of arrays."""

DENSITY_SCALES = (1e-6, 1e-2)
"""Densities n0 in bohr⁻³ around which ln(1 + n/n0) resolves: that of the tail, and of bonds."""

TAIL_ENERGY = 0.5
"""Kinetic energy per electron in hartree in the tail of a hydrogen atom, τ_vW/n = ½ζ² for ζ = 1."""

STRAIGHT = 0.95
"""Share of the upper bound T_TF up to which the network's energy is not changed."""

TIGHT = 50.0
"""Exponent in units of Z² from which on a filter is tighter than the cusp of a nucleus."""

FAINT = 1e-6
"""Density in bohr⁻³ below which nothing is resolved."""

UNUSUAL = 100.0
"""Features of atoms, which are of order one, are bounded by this number."""

LAYERS = "ScanInteraction_0"
"""Where the parameters of all message passing layers are, along a leading axis, in files too."""

REDUCED_GRADIENT = 1 / (4 * (3 * math.pi**2) ** (2 / 3))
"""s² n^(8/3) / |∇n|²."""


@partial(jax.tree_util.register_dataclass, data_fields=["energy", "tau"], meta_fields=[])
@dataclass(frozen=True)
class KineticEnergy:
    """What a network returns.

    Attributes:
        energy: ∫τ dr in hartree: T_s for the target "total", T_s - T_vW for "pauli".
        tau: kinetic energy density in hartree/bohr³ on the grid.
    """

    energy: Float[Array, "*batch"]
    tau: Float[Array, "*batch points"]


@partial(jax.tree_util.register_dataclass, data_fields=["neighbors", "operators"], meta_fields=[])
@dataclass(frozen=True)
class Geometry:
    """What of a network depends on the geometry alone.

    Attributes:
        neighbors: blocks of points with the atoms near them.
        operators: the filters on these points, or None to evaluate them on the way.
    """

    neighbors: Neighbors
    operators: Operators | None = None


@dataclass(frozen=True)
class KineticNet:
    """The network as a pure function of its parameters.

    T = Σ_g w_g τ_g is invariant under rotation, reflection, translation, permutation of like atoms
    and padding. For any parameters and any density, T ≥ 0 for the target "total", and
    0 ≤ T ≤ T_TF for "pauli" (unless `signed`). The potential is its derivative by `jax.grad`.

    Attributes:
        config: what it looks like.

    Reference: H. Remme, T. Kaczun, M. Scheurer, A. Dreuw, F. A. Hamprecht, J. Chem. Phys. 159,
        144113 (2023).
    """

    config: NetworkConfig

    def init(self, key: Array) -> Params:
        """Random parameters in float32.

        Args:
            key: from `jax.random.key`.
        """
        return _init(self.config, key)

    def shapes(self, layers: Params | None = None) -> Params:
        """Shapes and types of the parameters.

        Args:
            layers: those of the message passing layers, if they are known; to find them out takes
                a second, in which one layer of many is traced.
        """
        config, key = self.config, jax.random.key(0)
        params = jax.eval_shape(partial(_init_rest, config), key)
        params["interactions"] = {} if layers is None else layers
        if layers is None and config.interactions > 0:
            layer = jax.eval_shape(Interaction(*_sizes(config)).init, key, *_example(config))
            params["interactions"]["params"] = {
                LAYERS: jax.tree.map(
                    lambda one: jax.ShapeDtypeStruct((config.interactions, *one.shape), np.float32),
                    layer["params"],
                )
            }
        return params

    def apply(
        self,
        params: Params,
        molecule: Molecule,
        grid: Grid,
        density: GridDensity,
        geometry: Geometry | None = None,
    ) -> KineticEnergy:
        """Kinetic energy and kinetic energy density; pure, for `jax.jit`, `jax.grad`, `jax.vmap`.

        Args:
            params: from `init`; used in the precision of the density.
            molecule: charges and positions; a charge of zero is padding.
            grid: quadrature points and weights.
            density: on these points.
            geometry: neighbours and filters of this geometry; without, every atom sees every point.

        Raises:
            InputError: for an element the network has no parameters of, if the charges are known.
        """
        config, n = self.config, density.n
        check_elements(config.elements, molecule.charges)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype=n.dtype), params)
        positions = jnp.asarray(molecule.positions, dtype=n.dtype)
        if geometry is None:
            geometry = Geometry(all_neighbors(len(positions), len(n), CHUNK))
        charges = jnp.asarray(molecule.charges)
        same = charges[:, None] == jnp.asarray(config.elements)
        element, present = jnp.argmax(same, axis=1), jnp.any(same, axis=1)

        local = _local_inputs(config, density)
        encoded = points_to_atoms(
            config.filters,
            geometry.neighbors,
            grid.points,
            positions,
            lambda x: x[0] * _mlp(params["embedding"], x[1].T),
            # √n, which spans half the orders of magnitude of n; smooth where there is nothing.
            (grid.weights * n / jnp.sqrt(n + FAINT), local),
            geometry.operators,
        )
        linear = self._encode(params, encoded, element) * present[:, None]
        neighbors = geometry.neighbors
        linked = jnp.asarray(neighbors.linked)
        linked &= present[neighbors.senders] & present[neighbors.receivers]
        x = linear + _interact(
            config,
            params["interactions"],
            damp(linear, 0.25),
            params["elements"][element, 0],
            positions,
            jnp.asarray(neighbors.senders),
            jnp.asarray(neighbors.receivers),
            linked,
        )
        # Without the gradient, on which it does not depend: its derivatives could overflow.
        uniform = thomas_fermi(n, jnp.zeros_like(density.grad_n))
        usual = uniform + TAIL_ENERGY * n
        unit = usual if config.target == "total" else uniform
        tau = atoms_to_points(
            config.filters,
            geometry.neighbors,
            grid.points,
            positions,
            self._decode(params, x),
            lambda field, x: x[0] * self._enhancement(params, field / x[1], x[2]),
            (unit, jnp.sqrt(usual + FAINT), local),
            geometry.operators,
        )
        energy = integrate(grid.weights, tau)
        if config.target == "pauli" and not config.signed:
            largest = integrate(grid.weights, unit)
            share = ratio(energy, largest)
            bounded = _at_most_one(share)
            # One where nothing is bent, and zero where even T_TF is too small to divide by.
            unchanged = ratio(largest, largest)
            factor = jnp.where(share > STRAIGHT, ratio(bounded, share), unchanged)
            energy, tau = largest * bounded, tau * factor
        return KineticEnergy(energy, tau)

    def _encode(
        self,
        params: Params,
        encoded: Float[Array, "atoms rows channels"],
        element: Any,
    ) -> e3nn.IrrepsArray:
        """Features of the atoms from the convolution, scaled by what is usual for their element."""
        config = self.config
        scales = jnp.asarray(usual_moments(config.filters, config.elements), dtype=encoded.dtype)
        embedding = params["elements"][element]
        chunks = []
        for l, part in enumerate(config.filters.split(encoded)):
            part = part / scales[element, : part.shape[1], None, None]
            mixed = jnp.einsum("akmc,kcf->afm", part, params["encoder"][l])
            chunks.append(mixed * (1 + 0.1 * embedding[:, 2 * l, :, None]))
        chunks[0] = chunks[0] + embedding[:, 1, :, None]
        irreps = natural_irreps(config.features, config.degree)
        x = e3nn.from_chunks(irreps, chunks, (len(encoded),), encoded.dtype)
        # So far above what is usual that only products of the absurd are kept from overflowing.
        return UNUSUAL * damp(x / UNUSUAL, 0.5)

    def _decode(self, params: Params, x: e3nn.IrrepsArray) -> Float[Array, "atoms rows channels"]:
        """Coefficients of the filters of every atom."""
        parts = [
            jnp.einsum("afm,fkc->akmc", chunk, weights)
            for chunk, weights in zip(x.chunks, params["decoder"], strict=True)
        ]
        if self.config.vectors:
            # A vector along r from scalars, and one of the same direction everywhere from vectors.
            unit = jnp.eye(3, dtype=x.dtype)
            radial = jnp.einsum("afo,fkc,mn->akmcn", x.chunks[0], params["radial"], unit)
            uniform = jnp.einsum("afn,fkc->akcn", x.chunks[1], params["uniform"])[:, :, None]
            shapes = [(*part.shape[:3], *radial.shape[3:]) for part in parts]
            vectors = [uniform, radial, *(jnp.zeros(shape, x.dtype) for shape in shapes[2:])]
            parts = [
                jnp.concatenate([part, vector.reshape(*part.shape[:3], -1)], axis=-1)
                for part, vector in zip(parts, vectors, strict=True)
            ]
        return self.config.filters.join(parts)

    def _enhancement(
        self,
        params: Params,
        field: Float[Array, "channels size"],
        local: Float[Array, "size inputs"],
    ) -> Float[Array, "size"]:
        """τ in units of the Thomas-Fermi (target "total": and tail) one.

        Like the encoder's signals, fields are amplitudes: it is their squares that are comparable
        with a kinetic energy density, in the units of which they are given.
        """
        scalars = [field[: self.config.channels], local.T]
        if self.config.vectors:
            first = field[self.config.channels :].reshape(self.config.vectors, 3, -1)
            second = jnp.einsum("dc,cms->dms", params["partners"], first)
            length = 1 + 0.03 * jnp.sum(first**2, axis=1)
            scalars.append(jnp.sum(first * second, axis=1) / length)
        z = _mlp(params["head"], jnp.concatenate(scalars))[0]
        if self.config.vectors:
            z = z + params["direct"] @ scalars[-1]
        return z if self.config.signed else _positive(z + 0.5)


@partial(jax.jit, static_argnums=0)
def _init(config: NetworkConfig, key: Array) -> Params:
    layers = _Interactions(config).init(jax.random.split(key, 8)[3], *_example(config))
    return _init_rest(config, key) | jax.tree.map(
        lambda x: x.astype(jnp.float32), {"interactions": layers}
    )


def _example(config: NetworkConfig) -> tuple[Any, ...]:
    """What the message passing layers are applied to, for one atom without neighbours."""
    irreps = natural_irreps(config.features, config.degree)
    one = jnp.zeros((1,), dtype=jnp.int32)
    features, embedding = jnp.zeros((1, irreps.dim)), jnp.zeros((1, config.features))
    x = e3nn.IrrepsArray(irreps, features)
    return x, embedding, jnp.zeros((1, 3)), one, one, one.astype(bool)


def _init_rest(config: NetworkConfig, key: Array) -> Params:
    """All parameters but those of the message passing layers."""
    keys = jax.random.split(key, 8)
    inputs = _n_inputs(config)
    mixing = [count * config.channels for count in config.filters.counts]
    params: dict[str, Any] = {
        "embedding": _init_mlp(keys[0], (inputs, config.hidden, config.channels)),
        "elements": jax.random.normal(
            keys[1], (len(config.elements), 2 * (config.degree + 1), config.features)
        ),
        "encoder": [
            jax.random.normal(k, (count, config.channels, config.features)) / math.sqrt(size)
            for k, count, size in zip(
                jax.random.split(keys[2], len(mixing)),
                config.filters.counts,
                mixing,
                strict=True,
            )
        ],
        "decoder": [
            jax.random.normal(k, (config.features, count, config.channels))
            / math.sqrt(config.features * count)
            for k, count in zip(
                jax.random.split(keys[4], len(mixing)), config.filters.counts, strict=True
            )
        ],
        "head": _init_mlp(
            keys[5], (config.channels + config.vectors + inputs, config.hidden, config.hidden, 1)
        ),
    }
    if config.vectors:
        params["direct"] = jnp.full(config.vectors, 1 / config.vectors, jnp.float32)
        for name, count, k in zip(
            ("uniform", "radial"), config.filters.counts, jax.random.split(keys[6]), strict=False
        ):
            scale = math.sqrt(config.features * count)
            params[name] = jax.random.normal(k, (config.features, count, config.vectors)) / scale
        square = jax.random.normal(keys[7], (config.vectors, config.vectors))
        params["partners"] = square / math.sqrt(config.vectors)
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


class _Interactions(nn.Module):
    """All message passing layers of a network; for their parameters, see `_interact`."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, x: e3nn.IrrepsArray, *graph: Any) -> e3nn.IrrepsArray:
        config = self.config
        if config.interactions == 0:
            return x
        layers = nn.scan(
            Interaction,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.interactions,
        )
        return layers(*_sizes(config), name=LAYERS)(x, *graph)[0]


def _sizes(config: NetworkConfig) -> tuple[int, int, int, float]:
    return config.features, config.degree, config.hidden, config.filters.cutoff


def _interact(
    config: NetworkConfig, params: Params, x: e3nn.IrrepsArray, *graph: Any
) -> e3nn.IrrepsArray:
    """Applies the layers one after the other: `_Interactions`, whose scan traces a layer twice."""
    if config.interactions == 0:
        return x
    layer = Interaction(*_sizes(config))
    stacked = params["params"][LAYERS]
    if config.interactions == 1:
        return layer.apply({"params": jax.tree.map(lambda p: p[0], stacked)}, x, *graph)[0]
    # A scan, because the compilation of one layer takes seconds.
    return jax.lax.scan(lambda x, own: layer.apply({"params": own}, x, *graph), x, stacked)[0]


def _n_inputs(config: NetworkConfig) -> int:
    return len(DENSITY_SCALES) + (2 if config.inputs == "gradient" else 0)


def _local_inputs(config: NetworkConfig, density: GridDensity) -> Float[Array, "points inputs"]:
    """Numbers of order one that describe the density at a point, finite for any density."""
    n = jnp.maximum(density.n, 0.0)
    columns = [jnp.log1p(n / scale) / 10 for scale in DENSITY_SCALES]
    if config.inputs == "gradient":
        # Clipped at what no density reaches, so that squares do not overflow in float32.
        smooth = (n + 1e-8) ** (-4 / 3)
        x = jnp.clip(density.grad_n * smooth[:, None], -1e6, 1e6)
        s2 = REDUCED_GRADIENT * jnp.sum(x**2, axis=1)
        columns += [jnp.log1p(s2) / 5, s2 / (1 + s2)]
    return jnp.stack(columns, axis=1)


def usual_moments(
    filters: Filters, elements: tuple[int, ...]
) -> Float[np.ndarray, "elements count"]:
    """Scale of the moments ∫ √n R_k0 of the radial functions for each element.

    From two electrons in the 1s shell of the bare nucleus and the others in one of hydrogen. A
    filter much tighter than the cusp, α ≫ Z², learns no more than n at the nucleus and, for light
    elements, the quadrature error of a coarse grid; its scale is larger, so that it counts less.
    """
    x, w = np.polynomial.legendre.leggauss(200)
    r = filters.cutoff * ((x + 1) / 2) ** 4
    weights = 2 * filters.cutoff * ((x + 1) / 2) ** 3 * w * 4 * np.pi * r**2
    points = np.stack([r, 0 * r, 0 * r], axis=1)
    round_only = replace(filters, counts=filters.counts[:1])
    with jax.ensure_compile_time_eval():
        columns = round_only.evaluate(jnp.asarray(points), np.zeros((1, 3)))[0]
    values = np.asarray(columns, dtype=np.float64) * math.sqrt(4 * math.pi)
    exponents = filters.scales if filters.kind == "gaussian" else filters.scales**-2.0
    moments = []
    for z in elements:
        n = (min(z, 2) * z**3 * np.exp(-2 * z * r) + max(z - 2, 0) * np.exp(-2 * r)) / np.pi
        moments.append((values @ (weights * np.sqrt(n))) * (1 + exponents / (TIGHT * z**2)))
    return np.array(moments)


def _positive(x: Float[Array, "size"]) -> Float[Array, "size"]:
    """Close to x itself where it is positive, unlike softplus, and smooth."""
    return 0.5 * (x + jnp.sqrt(x**2 + 0.01))


def _at_most_one(x: Scalar) -> Scalar:
    """Brings x ≥ 0 below one: x itself up to 0.95, with two continuous derivatives."""
    room = 1 - STRAIGHT
    excess = jnp.maximum(x - STRAIGHT, 0.0) / room
    return jnp.where(excess > 0, STRAIGHT + room * jnp.tanh(excess), x)


def _init_mlp(key: Array, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {
            "weights": jax.random.normal(k, (after, before)) / math.sqrt(before),
            "bias": jnp.zeros(after, jnp.float32),
        }
        for k, before, after in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _mlp(
    layers: list[dict[str, Array]], x: Float[Array, "channels points"]
) -> Float[Array, "outputs points"]:
    """Dense layers with SiLU between them, applied to every point."""
    for i, layer in enumerate(layers):
        x = layer["weights"] @ (x if i == 0 else jax.nn.silu(x)) + layer["bias"][:, None]
    return x
