"""Neighbor lists: complete, without duplicates, and of few shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kineticnet_jax.nn.neighbors import MAX_CLASSES, all_neighbors, find_neighbors

CUTOFF = 6.0
CHUNKS = [1, 7, 1024]


def cluster(seed, atoms=12, points=300, size=25.0):
    """Atoms and points in a cube, some points far outside it, and some on nuclei."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(0, size, (atoms, 3))
    grid = rng.uniform(-0.2 * size, 1.2 * size, (points, 3))
    grid[: points // 10] += 1000.0
    grid[-atoms:] = positions
    return positions, grid


def distances(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def real_points(neighbors):
    return np.concatenate([chunks.points[chunks.real] for chunks in neighbors.chunks])


def near_atoms(neighbors):
    """Which atoms are near each point; none may be listed twice."""
    near = {}
    for chunks in neighbors.chunks:
        arrays = (chunks.points, chunks.real, chunks.atoms, chunks.near)
        blocks = (x.reshape(-1, x.shape[-1]) for x in arrays)
        for points, real, atoms, within in zip(*blocks, strict=True):
            listed = atoms[within].tolist()
            assert len(set(listed)) == len(listed)
            near |= {point: set(listed) for point in points[real].tolist()}
    return near


def pairs_of(neighbors):
    pairs = np.stack([neighbors.senders, neighbors.receivers])[:, neighbors.linked]
    listed = list(zip(*pairs.tolist(), strict=True))
    assert len(set(listed)) == len(listed)
    return set(listed)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("chunk", CHUNKS)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([3.0, 12.0, 25.0, 200.0]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_lists_of_random_clusters_are_complete(chunk, seed, size):
    positions, points = cluster(seed, size=size)
    neighbors = find_neighbors(positions, points, CUTOFF, chunk)
    assert np.array_equal(np.sort(real_points(neighbors)), np.arange(len(points)))
    assert 1 <= len(neighbors.chunks) <= MAX_CLASSES
    listed = near_atoms(neighbors)
    for point, atom in np.argwhere(distances(points, positions) < CUTOFF).tolist():
        assert atom in listed[point]
    within = distances(positions, positions) < CUTOFF
    np.fill_diagonal(within, False)
    assert pairs_of(neighbors) == {tuple(pair) for pair in np.argwhere(within).tolist()}


@pytest.mark.parametrize("chunk", CHUNKS)
def test_places_that_hold_nothing_are_marked(chunk):
    positions, points = cluster(0)
    neighbors = find_neighbors(positions, points, CUTOFF, chunk)
    assert sum(chunks.real.sum() for chunks in neighbors.chunks) == len(points)
    for chunks in neighbors.chunks:
        assert chunks.points.shape == chunks.real.shape
        assert chunks.atoms.shape == chunks.near.shape
        assert chunks.atoms.shape[:2] == chunks.points.shape[:2]
        assert chunks.points[0].size <= chunk
        # Places are valid indices even where they hold nothing.
        assert 0 <= chunks.points.min() <= chunks.points.max() < len(points)
        assert 0 <= chunks.atoms.min() <= chunks.atoms.max() < len(positions)
        # A block of filling only has no atoms.
        assert not chunks.near[~chunks.real.any(axis=-1)].any()
    assert neighbors.senders.shape == neighbors.receivers.shape == neighbors.linked.shape
    assert np.all(neighbors.senders[~neighbors.linked] == neighbors.receivers[~neighbors.linked])


def test_chunks_are_compact():
    positions, points = cluster(1, points=4000)
    far = find_neighbors(positions, points[400:], CUTOFF, 20)
    listed = sum(chunks.near.sum() for chunks in far.chunks)
    places = sum(chunks.near.size for chunks in far.chunks)
    everything = len(positions) * (len(points) - 400) / 20
    assert listed < 0.5 * everything
    assert places < 0.7 * everything


def test_atoms_beyond_the_cutoff_of_a_chunk_are_not_listed():
    positions, points = cluster(2)
    neighbors = find_neighbors(positions, points, CUTOFF, 1)
    within = distances(points, positions) < CUTOFF
    expected = {point: set(np.flatnonzero(row).tolist()) for point, row in enumerate(within)}
    assert near_atoms(neighbors) == expected


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_molecule_within_the_cutoff_has_all_neighbors(chunk):
    positions, points = cluster(3, atoms=5, size=3.0)
    neighbors = find_neighbors(positions, points, CUTOFF, chunk)
    assert_same(neighbors, all_neighbors(len(positions), len(points), chunk))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("points", [1, 7, 300])
def test_all_neighbors_are_all(chunk, points):
    neighbors = all_neighbors(4, points, chunk)
    assert np.array_equal(np.sort(real_points(neighbors)), np.arange(points))
    assert near_atoms(neighbors) == {point: {0, 1, 2, 3} for point in range(points)}
    assert pairs_of(neighbors) == {(i, j) for i in range(4) for j in range(4) if i != j}
    (chunks,) = neighbors.chunks
    assert chunks.points[0].size <= chunk


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_single_atom_has_no_pairs(chunk):
    positions, points = cluster(4, atoms=1, points=30)
    neighbors = find_neighbors(positions, points, CUTOFF, chunk)
    assert pairs_of(neighbors) == set()
    assert near_atoms(neighbors) == {point: {0} for point in range(30)}


def test_atoms_without_neighbors_and_points_without_atoms():
    positions = np.array([[0.0, 0, 0], [100, 0, 0]])
    neighbors = find_neighbors(positions, np.full((3, 3), 50.0), CUTOFF, 2)
    assert pairs_of(neighbors) == set()
    assert near_atoms(neighbors) == {0: set(), 1: set(), 2: set()}


def test_arrays_of_jax_and_single_precision_give_the_same():
    positions, points = (x.astype(np.float32) for x in cluster(5))
    expected = find_neighbors(positions.astype(np.float64), points.astype(np.float64), CUTOFF, 7)
    assert_same(find_neighbors(jnp.asarray(positions), jnp.asarray(points), CUTOFF, 7), expected)
