"""Which atoms and grid points are close enough to see each other, as arrays of static shape.

Grid points are processed in blocks; each block comes with the atoms near it. For a large molecule
the blocks are compact regions, so that the number of atoms near each does not grow with it, and
several of them are processed together.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial import cKDTree

from kineticnet_jax.grid import bucket_size
from kineticnet_jax.types import Positions

CHUNK = 1024
"""Default number of grid points processed together: few enough to stay in the cache."""

BLOCK = 64
"""Points of a block of a large molecule: few enough to be compact, enough for matrix products."""

MAX_CLASSES = 8
"""Blocks are grouped by the number of atoms near them into at most this many classes."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["points", "real", "atoms", "near"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Chunks:
    """Blocks of grid points with the same number of places for atoms.

    The blocks of a chunk are processed together, the chunks one after the other.

    Attributes:
        points: indices of grid points.
        real: false for places that only fill up a block.
        atoms: indices of the atoms near each block.
        near: false for places that only fill up the list of atoms.
    """

    points: Int[Array | np.ndarray, "*batch chunks blocks size"]
    real: Bool[Array | np.ndarray, "*batch chunks blocks size"]
    atoms: Int[Array | np.ndarray, "*batch chunks blocks places"]
    near: Bool[Array | np.ndarray, "*batch chunks blocks places"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["chunks", "senders", "receivers", "linked"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Neighbors:
    """Blocks of points with the atoms near them, and pairs of atoms.

    Attributes:
        chunks: the blocks by class; every grid point occurs once as real.
        senders: first atom of each ordered pair.
        receivers: second atom of each pair.
        linked: false for pairs that only fill up the list.
    """

    chunks: tuple[Chunks, ...]
    senders: Int[Array | np.ndarray, "*batch pairs"]
    receivers: Int[Array | np.ndarray, "*batch pairs"]
    linked: Bool[Array | np.ndarray, "*batch pairs"]


def all_neighbors(n_atoms: int, n_points: int, chunk: int = CHUNK) -> Neighbors:
    """Every atom near every point and atom; needs the sizes only, so it works on traced arrays.

    Args:
        n_atoms: number of atoms.
        n_points: number of grid points.
        chunk: largest number of points processed together.
    """
    count = -(-n_points // chunk)
    size = -(-n_points // count)
    missing = count * size - n_points
    points = np.pad(np.arange(n_points), (0, missing)).reshape(count, 1, size)
    real = (np.arange(count * size) < n_points).reshape(count, 1, size)
    atoms = np.broadcast_to(np.arange(n_atoms), (count, 1, n_atoms))
    first, second = (index.reshape(-1) for index in np.indices((n_atoms, n_atoms)))
    return Neighbors(
        (Chunks(points, real, atoms, np.ones(atoms.shape, dtype=bool)),),
        first,
        second,
        first != second,
    )


def find_neighbors(
    positions: Positions,
    points: Float[Array | np.ndarray, "points 3"],
    cutoff: float,
    chunk: int = CHUNK,
) -> Neighbors:
    """Atoms and points, and pairs of atoms, closer than a cutoff; on the host.

    Time and memory grow with the number of atoms as N log N. If all atoms are within the cutoff of
    each other, everything is taken as near, so that shapes do not depend on the geometry.

    Args:
        positions: nuclear positions in bohr.
        points: grid points in bohr.
        cutoff: in bohr.
        chunk: largest number of points processed together.
    """
    positions, points = np.asarray(positions), np.asarray(points)
    pairs = cKDTree(positions).query_pairs(cutoff, output_type="ndarray")
    if 2 * len(pairs) == len(positions) * (len(positions) - 1):
        return all_neighbors(len(positions), len(points), chunk)
    block = min(BLOCK, chunk)
    parts = _bisect(points, np.arange(len(points)), block)
    near = _atoms_near(positions, [points[part] for part in parts], cutoff)
    (senders, receivers), linked = _fill_pairs(np.concatenate([pairs, pairs[:, ::-1]]).T)
    return Neighbors(
        tuple(_classes(parts, near, block, chunk // block)), senders, receivers, linked
    )


def _bisect(
    points: Float[np.ndarray, "points 3"], index: Int[np.ndarray, "part"], size: int
) -> list[Int[np.ndarray, "_"]]:
    """Splits points along the longest axis until no part is larger than `size`."""
    if len(index) <= size:
        return [index]
    half = -(-len(index) // size) // 2 * size
    axis = int(np.argmax(np.ptp(points[index], axis=0)))
    order = np.argpartition(points[index, axis], half)
    first, second = index[order[:half]], index[order[half:]]
    return _bisect(points, first, size) + _bisect(points, second, size)


def _atoms_near(
    positions: Float[np.ndarray, "atoms 3"], parts: list[np.ndarray], cutoff: float
) -> list[Int[np.ndarray, "_"]]:
    """Atoms within the cutoff of any point of each part."""
    low = np.array([part.min(axis=0) for part in parts])
    high = np.array([part.max(axis=0) for part in parts])
    reach = np.linalg.norm(high - low, axis=1) / 2 + cutoff
    candidates = cKDTree(positions).query_ball_point((low + high) / 2, reach)
    near = []
    for part, atoms in zip(parts, candidates, strict=True):
        atoms = np.array(sorted(atoms), dtype=np.int64)
        distances, _ = cKDTree(part).query(positions[atoms].reshape(-1, 3))
        near.append(atoms[distances < cutoff])
    return near


def _classes(
    parts: list[np.ndarray], near: list[np.ndarray], size: int, blocks: int
) -> list[Chunks]:
    """Groups blocks by the number of atoms near them such that the fewest places stay empty."""
    counts = np.maximum([len(atoms) for atoms in near], 1)
    limits = _limits(counts)
    return [
        _stack(np.flatnonzero(np.searchsorted(limits, counts) == i), parts, near, end, size, blocks)
        for i, end in enumerate(limits)
    ]


def _limits(counts: Int[np.ndarray, "blocks"]) -> list[int]:
    """Largest count of each class, chosen by dynamic programming."""
    sizes, numbers = np.unique(counts, return_counts=True)
    below = np.concatenate([[0], np.cumsum(numbers)])
    # For each number of sizes, the places they need and the ends of their classes.
    best: list[tuple[float, list[int]]]
    best = [(math.inf if last else 0.0, []) for last in range(len(sizes) + 1)]
    for _ in range(MAX_CLASSES):
        best = [
            min(
                best[last],
                *(
                    (
                        best[first][0] + float(sizes[last - 1] * (below[last] - below[first])),
                        [*best[first][1], int(sizes[last - 1])],
                    )
                    for first in range(last)
                ),
                key=lambda choice: choice[0],
            )
            if last
            else best[0]
            for last in range(len(sizes) + 1)
        ]
    return best[-1][1]


def _stack(
    members: Int[np.ndarray, "members"],
    parts: list[np.ndarray],
    near: list[np.ndarray],
    places: int,
    size: int,
    blocks: int,
) -> Chunks:
    """Blocks as arrays, filled up to whole chunks and to a bucket of them."""
    chunks = bucket_size(-(-len(members) // blocks))
    rows = chunks * blocks
    points, real = np.zeros((rows, size), dtype=np.int64), np.zeros((rows, size), dtype=bool)
    atoms, within = np.zeros((rows, places), dtype=np.int64), np.zeros((rows, places), dtype=bool)
    for row, member in enumerate(members):
        points[row, : len(parts[member])] = parts[member]
        real[row, : len(parts[member])] = True
        atoms[row, : len(near[member])] = near[member]
        within[row, : len(near[member])] = True
    return Chunks(*(array.reshape(chunks, blocks, -1) for array in (points, real, atoms, within)))


def _fill_pairs(
    pairs: Int[np.ndarray, "2 _"],
) -> tuple[Int[np.ndarray, "2 filled"], Bool[np.ndarray, "filled"]]:
    """Fills the list of pairs up to a bucket with an atom and itself."""
    missing = bucket_size(max(pairs.shape[1], 1)) - pairs.shape[1]
    linked = np.arange(pairs.shape[1] + missing) < pairs.shape[1]
    return np.pad(pairs, ((0, 0), (0, missing))), linked
