"""Labels of a data set in terms of moments, for functionals that see nothing else of a density.

Moments are integrals of powers of the density. With their derivatives along changes of ψ = √n, a
sample's potential is compared without its grid, a hundred times faster than on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.data.dataset import Dataset
from kineticnet_jax.data.spaces import (
    OneElectronSpace,
    amplitude,
    density_functions,
    preconditioned_changes,
    sample_orbitals,
)
from kineticnet_jax.files import read_arrays, write_arrays
from kineticnet_jax.functionals.kinetic import von_weizsaecker
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.nn.convolution import Operators, build_operators
from kineticnet_jax.nn.moments import (
    MomentNetConfig,
    Moments,
    by_element,
    channel_squares,
    density_moments,
    of_element,
    read_out,
)
from kineticnet_jax.nn.neighbors import Neighbors, all_neighbors
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.types import PerPoint, Scalar

FLOOR = 1e-7
"""Variance, relative to the largest, below which a combination of moments is not scaled up."""

VANISHING = 1e-6
"""Size of a moment, relative to the largest, that is zero but for rounding, as in a round atom."""

SLACK = 2.0
"""How far beyond the farthest training sample of an element its barrier begins, in squares."""

LEAST = 1e-3
"""Square of a channel that is nothing, as those of vectors in a round atom."""

ARRAYS = ("energy", "slope", "element", "validation", "unperturbed")
FOR_EACH_L = ("moments", "changes")


@dataclass
class MomentLabels:
    """Samples of one family, along the first axis of everything but `element`.

    Attributes:
        energy: T_s - T_vW or T_s in hartree.
        moments: of every atom; in a training whitened.
        changes: derivatives of the moments along changes of ψ, with an axis for directions.
        slope: derivatives of the energy along the same changes; NaN where there are none.
        element: index of the element of every atom.
        validation: whether the geometry is one of the validation split.
        unperturbed: whether it is the ground state without an external potential.
    """

    energy: Float[np.ndarray, "samples"]
    moments: list[np.ndarray]
    changes: list[np.ndarray]
    slope: Float[np.ndarray, "samples directions"]
    element: np.ndarray
    validation: np.ndarray
    unperturbed: np.ndarray

    def write(self, path: Path) -> None:
        """Writes them to a file, completely or not at all."""
        write_parts(path, vars(self))

    @classmethod
    def read(cls, path: Path, config: MomentNetConfig) -> "MomentLabels":
        """Those of such a file.

        Raises:
            InputError: if it is damaged.
        """
        return cls(**read_parts(path, ARRAYS, FOR_EACH_L, config))


def write_parts(path: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays and lists of arrays for each l to a file, completely or not at all."""
    flat: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if isinstance(value, list):
            flat |= {f"{name}-{l}": part for l, part in enumerate(value)}
        else:
            flat[name] = value
    write_arrays(path, flat)


def read_parts(
    path: Path, names: Sequence[str], for_each_l: Sequence[str], config: MomentNetConfig
) -> dict[str, Any]:
    """What `write_parts` has written.

    Raises:
        InputError: if the file is damaged.
    """
    parts = {name: [f"{name}-{l}" for l in range(len(config.sizes))] for name in for_each_l}
    stored = read_arrays(path, [*names, *(part for of_l in parts.values() for part in of_l)])
    lists = {name: [stored[part] for part in of_l] for name, of_l in parts.items()}
    return {name: stored[name] for name in names} | lists


def moment_labels(
    config: MomentNetConfig,
    dataset: Dataset,
    family: str,
    directions: int,
    kappa: float,
    seed: int = 0,
    callback: Callable[[int], None] | None = None,
) -> MomentLabels:
    """Moments and labels of the training and validation samples of a family.

    Args:
        config: which moments; its target says of what the labels are.
        dataset: with both splits.
        family: its name.
        directions: random directions along which the potential of each sample is known.
        kappa: κ in hartree, see `preconditioned_changes`.
        seed: of the directions.
        callback: called with the number of samples done after each geometry.
    """
    rows: list[tuple] = []
    key = jax.random.key(seed, impl="threefry2x32")
    with jax.enable_x64(True):
        for split in ("train", "validation"):
            for geometry, numbers in dataset.select(split, family).by_geometry():
                record, space = dataset.record(geometry), dataset.space(geometry)
                tools = moment_tools(config, space)
                for number in numbers:
                    values = _labels(
                        config,
                        space,
                        tools,
                        jnp.asarray(record.orbitals[number][:, : space.occupied]),
                        jnp.asarray(record.sqrt_coefficients[number]),
                        jnp.asarray(record.potential_gradient[number]),
                        jax.random.fold_in(jax.random.fold_in(key, geometry), number),
                        directions,
                        kappa,
                    )
                    found = jax.tree.map(np.asarray, values)
                    rows.append((*found, split == "validation", number == 0))
                if callback is not None:
                    callback(len(rows))
    energy, slope, moments, changes, validation, unperturbed = zip(*rows, strict=True)
    return MomentLabels(
        np.array(energy),
        [np.stack(part) for part in zip(*moments, strict=True)],
        [np.stack(part) for part in zip(*changes, strict=True)],
        np.array(slope, np.float32),
        np.array([config.elements.index(int(z)) for z in dataset.family(family).charges]),
        np.array(validation),
        np.array(unperturbed),
    )


Tools = tuple[Neighbors, Operators, Float[Array, "points functions"]]
"""What all samples of a geometry share: filters, and the functions of √n on the grid."""


def moment_tools(config: MomentNetConfig, space: OneElectronSpace) -> Tools:
    """Evaluates them on the grid."""
    neighbors = all_neighbors(len(space.positions), len(space.grid.points), len(space.grid.points))
    operators = build_operators(config.filters, neighbors, space.grid.points, space.positions)
    return neighbors, operators, _functions(space)


_functions = jax.jit(density_functions)


@partial(jax.jit, static_argnums=(0, 7, 8))
def _labels(
    config: MomentNetConfig,
    space: OneElectronSpace,
    tools: Tools,
    orbitals: Float[Array, "functions occupied"],
    x: Float[Array, "density_functions"],
    gradient: Float[Array, "density_functions"],
    key: Array,
    directions: int,
    kappa: float,
) -> tuple[Scalar, Float[Array, "directions"], Moments, Moments]:
    """Energy, its derivatives along random changes of ψ, moments, and theirs."""
    neighbors, operators, functions = tools
    grid = space.grid
    n, grad_n, tau = sample_orbitals(space, orbitals)
    psi, _ = amplitude(space, orbitals, GridDensity(n, grad_n))
    if config.target == "pauli":
        tau -= von_weizsaecker(n, grad_n)
        gradient -= 2 * space.density.kinetic_eigenvalues * x
    drawn = jax.random.normal(key, (directions, len(x))) / np.sqrt(directions)
    scaled = preconditioned_changes(space, x, drawn, kappa)

    def moments(n: PerPoint) -> Moments:
        return density_moments(config, neighbors, grid, space.positions, n, operators)

    found, derivative = jax.linearize(moments, n)
    changes = jax.vmap(derivative)(2 * psi * (scaled @ functions.T))
    changes = [part.astype(jnp.float32) for part in changes]
    return integrate(grid.weights, tau), scaled @ gradient, found, changes


@dataclass(frozen=True)
class Whitening:
    """Linear maps of moments in which potentials are learned evenly.

    In whitened moments all preconditioned changes of a density are alike; their scales, from the
    spread of the samples, are for what is not linear.

    Attributes:
        mean: of the scalar moments of each element.
        maps: for each l, one matrix for each element.
        scales: for each l, the usual size of a whitened moment in a training sample, at least one.
    """

    mean: Float[np.ndarray, "elements numbers"]
    maps: list[Float[np.ndarray, "elements _ _"]]
    scales: list[Float[np.ndarray, "_"]]

    @classmethod
    def fit(cls, config: MomentNetConfig, labels: dict[str, MomentLabels]) -> "Whitening":
        """From the training samples."""
        means, maps = [], []
        for element in range(len(config.elements)):
            scalars, squares = [], [np.zeros((size, size)) for size in config.sizes]
            counts = [0] * len(config.sizes)
            for known in labels.values():
                train = ~known.validation
                for atom in np.flatnonzero(known.element == element):
                    scalars.append(known.moments[0][train, atom, :, 0])
                    for l, part in enumerate(known.changes):
                        for sample in part[train, :, atom]:
                            columns = np.moveaxis(sample, 1, 0).reshape(part.shape[3], -1)
                            squares[l] += columns.astype(float) @ columns.T
                            counts[l] += columns.shape[1]
            means.append(np.concatenate(scalars).mean(axis=0))
            squares = [square / count for square, count in zip(squares, counts, strict=True)]
            largest = max(np.max(np.diag(square)) for square in squares)
            maps.append([_inverse_root(square, VANISHING**2 * largest) for square in squares])
        stacked = [np.stack(of_l) for of_l in zip(*maps, strict=True)]
        whitening = cls(np.array(means), stacked, [])
        families = [
            whitening.of_moments(known.element, [m[~known.validation] for m in known.moments])
            for known in labels.values()
        ]
        for of_l in zip(*families, strict=True):
            spread = [np.mean(part**2, axis=(0, 1, 3)) for part in of_l]
            whitening.scales.append(np.sqrt(1 + np.mean(spread, axis=0)))
        return whitening

    def of_moments(self, element: np.ndarray, moments: list[np.ndarray]) -> list[np.ndarray]:
        """Moments without their means, whitened.

        Args:
            element: index of the element of every atom.
            moments: with any leading axes.
        """
        centred = [moments[0] - self.mean[element][..., None], *moments[1:]]
        return self.of_changes(element, centred)

    def of_changes(self, element: np.ndarray, changes: list[np.ndarray]) -> list[np.ndarray]:
        """Derivatives of moments, whitened."""
        return [
            np.einsum("ack,...akm->...acm", maps[element], part, optimize=True).astype(np.float32)
            for maps, part in zip(self.maps, changes, strict=True)
        ]

    def adjoint(self, element: np.ndarray, slope: list[np.ndarray]) -> list[np.ndarray]:
        """Derivatives by moments as they are, of derivatives by whitened ones."""
        return [
            np.einsum("ack,acm->akm", maps[element], part)
            for maps, part in zip(self.maps, slope, strict=True)
        ]

    def energies(
        self, params: dict, moments: dict[str, Moments], element: dict[str, np.ndarray]
    ) -> dict[str, Float[Array, "_"]]:
        """Energies of samples of families, whose atoms are evaluated together.

        Args:
            params: that are trained.
            moments: whitened, of the samples of each family.
            element: index of the element of every atom of each family.
        """
        linear = params["linear"] * jnp.asarray(self.scales[0], params["linear"].dtype)
        shapes = {name: own[0].shape[:2] for name, own in moments.items()}
        flat: Moments = [
            jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in of_l])
            for of_l in zip(*moments.values(), strict=True)
        ]
        elements = [np.tile(element[name], samples) for name, (samples, _) in shapes.items()]
        found = by_element(
            read_out, params | {"linear": linear}, self.scaled(flat), np.concatenate(elements)
        )
        ends = np.cumsum([samples * atoms for samples, atoms in shapes.values()])
        return {
            name: jnp.sum(part.reshape(shape), axis=1)
            for (name, shape), part in zip(shapes.items(), jnp.split(found, ends[:-1]), strict=True)
        }

    def scaled(self, moments: Moments) -> Moments:
        """Whitened moments in units of their spread."""
        return _in_units(moments, self.scales)

    def folded(self, params: dict) -> dict:
        """The parameters of `MomentNet`, for moments as they are, of those that are trained."""
        mix = [
            (np.asarray(mixed, float) / scale) @ maps
            for mixed, scale, maps in zip(params["mix"], self.scales, self.maps, strict=True)
        ]
        linear = np.einsum("ec,eck->ek", np.asarray(params["linear"], float), self.maps[0])
        plain = jax.tree.map(np.asarray, params)
        bias = np.asarray(params["bias"], float)
        return plain | {"mean": self.mean, "bias": bias, "linear": linear, "mix": mix}


def barrier_limits(
    config: MomentNetConfig, whitening: Whitening, labels: dict[str, MomentLabels], params: dict
) -> dict[str, np.ndarray]:
    """What is usual in the channels, and how far from it the barrier begins, as in `MomentNet`.

    Args:
        config: which moments.
        whitening: of the moments.
        labels: of each family, whitened.
        params: that are trained.
    """
    squares: list[list[np.ndarray]] = [[] for _ in config.elements]
    for known in labels.values():
        moments = [part[~known.validation] for part in known.moments]
        for atom, element in enumerate(known.element):
            own = [part[:, atom] for part in moments]
            squares[element].append(
                np.asarray(_squares_of_atoms(params, element, whitening.scales, own))
            )
    of_elements = [np.concatenate(rows) for rows in squares]
    usual = [rows.mean(axis=0) + LEAST for rows in of_elements]
    largest = [
        np.max(np.mean(rows / mean, axis=1)) for rows, mean in zip(of_elements, usual, strict=True)
    ]
    return {"usual": np.array(usual), "limit": SLACK * np.array(largest)}


@jax.jit
def _squares_of_atoms(
    params: dict, element: Int[Array, ""], scales: list[Array], moments: Moments
) -> Float[Array, "atoms invariants"]:
    """`channel_squares` of atoms of one element, from whitened moments."""
    return channel_squares(of_element(params, element), _in_units(moments, scales))


def _in_units(moments: Moments, scales: Sequence[Array | np.ndarray]) -> Moments:
    return [
        part / jnp.asarray(scale, part.dtype)[:, None]
        for part, scale in zip(moments, scales, strict=True)
    ]


def _inverse_root(
    square: Float[np.ndarray, "numbers numbers"], least: float
) -> Float[np.ndarray, "numbers numbers"]:
    """A map that brings a covariance to unity, but for combinations that hardly vary."""
    scale = np.sqrt(np.maximum(np.diag(square), least))
    values, vectors = np.linalg.eigh(square / np.outer(scale, scale))
    values = np.maximum(values, 0) + FLOOR * max(values[-1], 1.0)
    return (vectors / np.sqrt(values)).T / scale
