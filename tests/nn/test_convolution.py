"""Convolutions between points and atoms: values, transposes, gradients, symmetry."""

from dataclasses import replace
from functools import cache, partial

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kineticnet_jax.errors import InputError
from kineticnet_jax.nn.convolution import (
    Filters,
    atoms_to_points,
    build_operators,
    operator_bytes,
    points_to_atoms,
)
from kineticnet_jax.nn.neighbors import all_neighbors, find_neighbors

COUNTS = (5, 4, 3, 2)
FILTERS = {
    "gaussian": Filters(COUNTS, first=0.1, last=300.0, cutoff=5.0),
    "log-gaussian": Filters(COUNTS, first=4.0, last=0.05, cutoff=5.0, kind="log-gaussian"),
}
ATOMS, POINTS, CHANNELS = 3, 60, 2


def geometry(seed=0, size=4.0):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-size, size, (ATOMS, 3))
    # Half of the points are close to a nucleus.
    spread = np.geomspace(1e-3, 0.5, POINTS // 2)[:, None]
    near = positions[rng.integers(ATOMS, size=POINTS // 2)] + spread * rng.normal(
        size=(POINTS // 2, 3)
    )
    far = rng.uniform(-1.5 * size, 1.5 * size, (POINTS - POINTS // 2, 3))
    return jnp.asarray(positions), jnp.asarray(np.concatenate([near, far]))


def signals(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(POINTS, CHANNELS)))


def coefficients(filters, seed=2):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(ATOMS, filters.rows, CHANNELS)))


def transposed(x):
    return x.T


def weighted(field, weights):
    return jnp.sum(field * weights.T, axis=0)


@partial(jax.jit, static_argnums=0)
def encode(filters, neighbors, points, positions, signal, operators=None):
    return points_to_atoms(filters, neighbors, points, positions, transposed, signal, operators)


@partial(jax.jit, static_argnums=0)
def decode(filters, neighbors, points, positions, rows, weights, operators=None):
    """Σ_c h_gc weights_gc, from which all channels can be had."""
    return atoms_to_points(
        filters, neighbors, points, positions, rows, weighted, weights, operators
    )


def everything(chunk=1024):
    return all_neighbors(ATOMS, POINTS, chunk)


def lists(filters, positions, points):
    return find_neighbors(positions, points, filters.cutoff, 7)


def dense(filters, points, positions):
    """f_klm(r_g - R_A) by its formula, times row_scales; shape (atoms, rows, points)."""
    vectors = np.asarray(points)[None] - np.asarray(positions)[:, None]
    r = np.linalg.norm(vectors, axis=-1)
    x = np.minimum(r / filters.cutoff, 1.0) ** 2
    envelope = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
    scales = np.geomspace(filters.first, filters.last, filters.counts[0])
    rows = []
    for l, count in enumerate(filters.counts):
        harmonics = e3nn.spherical_harmonics(
            f"{l}{'eo'[l % 2]}", jnp.asarray(vectors), normalize=True, normalization="integral"
        ).array
        for k in range(count):
            if filters.kind == "gaussian":
                radial = (np.sqrt(scales[k]) * r) ** l * np.exp(-scales[k] * r**2)
            else:
                radial = np.exp(-0.5 * (np.log(r / scales[k]) / 0.5) ** 2)
            rows += [envelope * radial * harmonics[..., m] for m in range(2 * l + 1)]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("l", range(len(COUNTS)))
def test_features_of_atoms_are_the_dense_sum_for_every_l(kind, l):
    filters = FILTERS[kind]
    positions, points = geometry()
    part = filters.split(encode(filters, everything(), points, positions, signals()))[l]
    expected = np.einsum("arg,gc->arc", dense(filters, points, positions), signals())
    expected = filters.split(jnp.asarray(expected))[l]
    assert part.shape == (ATOMS, COUNTS[l], 2 * l + 1, CHANNELS)
    np.testing.assert_allclose(part, expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("kind", FILTERS)
def test_field_on_points_is_the_dense_sum(kind):
    filters = FILTERS[kind]
    positions, points = geometry()
    rows = coefficients(filters)
    expected = np.einsum("arg,arc->gc", dense(filters, points, positions), rows)
    for c in range(CHANNELS):
        weights = jnp.zeros((POINTS, CHANNELS)).at[:, c].set(1.0)
        field = decode(filters, everything(), points, positions, rows, weights)
        np.testing.assert_allclose(field, expected[:, c], atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("neighbors", [lists, lambda *_: everything(7)], ids=["lists", "all"])
@pytest.mark.parametrize("kind", FILTERS)
def test_from_atoms_to_points_is_the_transpose_of_from_points_to_atoms(kind, neighbors):
    filters = FILTERS[kind]
    positions, points = geometry(size=8.0)
    where = (filters, neighbors(filters, positions, points), points, positions)
    rows, signal = coefficients(filters), signals()
    forward = jnp.vdot(rows, encode(*where, signal))
    backward = jnp.sum(decode(*where, rows, signal))
    assert forward == pytest.approx(float(backward), rel=1e-12)


@pytest.mark.parametrize("neighbors", [lists, lambda *_: everything(7)], ids=["lists", "all"])
@pytest.mark.parametrize("kind", FILTERS)
def test_stored_operators_change_nothing(kind, neighbors):
    filters = FILTERS[kind]
    positions, points = geometry(size=8.0)
    neighbors = neighbors(filters, positions, points)
    where = (filters, neighbors, points, positions)
    operators = build_operators(*where)
    assert sum(x.nbytes for x in operators) == operator_bytes(filters, neighbors, np.float64)
    rows, signal = coefficients(filters), signals()
    for function, inputs in ((encode, (signal,)), (decode, (rows, signal))):
        expected = function(*where, *inputs)
        scale = np.abs(expected).max()
        result = function(*where, *inputs, operators)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12 * scale)


def test_operators_take_half_the_memory_in_single_precision():
    filters = FILTERS["gaussian"]
    positions, points = (x.astype(jnp.float32) for x in geometry(size=8.0))
    neighbors = lists(filters, positions, points)
    operators = build_operators(filters, neighbors, points, positions)
    size = operator_bytes(filters, neighbors, np.float32)
    assert sum(x.nbytes for x in operators) == size
    assert 2 * size == operator_bytes(filters, neighbors, np.float64)


@pytest.mark.parametrize("kind", FILTERS)
def test_what_lies_beyond_the_cutoff_has_no_influence(kind):
    filters = FILTERS[kind]
    positions, points = geometry(size=8.0)
    neighbors = lists(filters, positions, points)
    assert sum(chunks.near.sum() for chunks in neighbors.chunks) < ATOMS * POINTS / 7
    rows, signal = coefficients(filters), signals()
    for function, inputs in ((encode, (signal,)), (decode, (rows, signal))):
        expected = function(filters, everything(), points, positions, *inputs)
        result = function(filters, neighbors, points, positions, *inputs)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("chunk", [1, 7, 25, POINTS])
def test_chunks_may_have_any_size(chunk):
    filters = FILTERS["gaussian"]
    positions, points = geometry()
    rows, signal = coefficients(filters), signals()
    for function, inputs in ((encode, (signal,)), (decode, (rows, signal))):
        expected = function(filters, everything(), points, positions, *inputs)
        result = function(filters, everything(chunk), points, positions, *inputs)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13 * scale)


def roundtrip(filters, neighbors, points, positions, signal):
    """A number that depends nonlinearly on everything, through both convolutions."""
    features = points_to_atoms(
        filters, neighbors, points, positions, lambda x: jnp.sin(x.T) * x.T, signal
    )
    values = atoms_to_points(
        filters,
        neighbors,
        points,
        positions,
        jnp.tanh(features),
        lambda field, x: jnp.tanh(0.1 * weighted(field, x)) + x[:, 0] ** 2,
        signal,
    )
    return jnp.sum(values * jnp.arange(1, len(points) + 1)) / len(points)


@cache
def roundtrip_derivatives(kind):
    """Gradient, and Hessian times a vector, with respect to points, positions and signal."""
    filters = replace(FILTERS[kind], counts=(4, 3, 2))

    @jax.jit
    def function(inputs, direction):
        differentiated = jax.value_and_grad(
            partial(roundtrip, filters, everything(25)), argnums=(0, 1, 2)
        )
        return jax.jvp(differentiated, inputs, direction)

    return function


def directions(inputs):
    """A random direction for each input alone."""
    rng = np.random.default_rng(5)
    for chosen in range(len(inputs)):
        yield tuple(
            jnp.asarray(rng.normal(size=x.shape)) * (i == chosen) for i, x in enumerate(inputs)
        )


def difference(function, inputs, direction, h=2e-5):
    def along(t):
        return function(tuple(x + t * v for x, v in zip(inputs, direction, strict=True)), direction)

    stencil = {-2 * h: 1, -h: -8, h: 8, 2 * h: -1}
    values = [
        jax.tree.map(lambda x, a=a: a / (12 * h) * x, along(t)[0]) for t, a in stencil.items()
    ]
    return jax.tree.map(lambda *x: sum(x), *values)


def on_nuclei(positions, points):
    return points.at[:ATOMS].set(positions)


@pytest.mark.parametrize("kind", FILTERS)
def test_gradients_are_finite_differences_on_nuclei_too(kind):
    positions, points = geometry()
    inputs = (on_nuclei(positions, points), positions, signals())
    function = roundtrip_derivatives(kind)
    for direction in directions(inputs):
        (_, gradient), (slope, _) = function(inputs, direction)
        expected = float(difference(function, inputs, direction)[0])
        assert slope == pytest.approx(expected, rel=1e-7)
        product = sum(jnp.vdot(x, v) for x, v in zip(gradient, direction, strict=True))
        assert product == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("gaussian", None),
        ("log-gaussian", None),
        ("gaussian", on_nuclei),
        ("log-gaussian", on_nuclei),
    ],
)
def test_hessian_vector_products_are_differences_of_gradients(kind, place):
    positions, points = geometry()
    points = points if place is None else place(positions, points)
    inputs = (points, positions, signals())
    function = roundtrip_derivatives(kind)
    for direction in directions(inputs):
        _, (_, products) = function(inputs, direction)
        _, expected = difference(function, inputs, direction)
        for x, y in zip(products, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * np.abs(y).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", FILTERS)
def test_filters_have_finite_gradients_at_any_distance_from_a_nucleus(kind, dtype):
    distances = np.concatenate([[0.0], np.geomspace(1e-300, 1e3, 500), [5.0, 5.0 - 1e-7]])
    points = jnp.asarray(distances[:, None] * np.array([0.6, 0.0, -0.8]), dtype=dtype)

    def evaluate(point):
        return FILTERS[kind].evaluate(point[None], jnp.zeros((1, 3), dtype=dtype))[0, :, 0]

    results = jax.jit(jax.vmap(lambda point: (evaluate(point), jax.jacrev(evaluate)(point))))(
        points
    )
    for values in results:
        assert values.dtype == dtype
        assert np.all(np.isfinite(values))
        # Filters vanish beyond the cutoff.
        assert np.all(np.asarray(values)[distances > 5.001] == 0)


@pytest.mark.parametrize("kind", FILTERS)
def test_features_turn_with_the_geometry(kind):
    filters = FILTERS[kind]
    positions, points = geometry()
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    before = filters.split(encode(filters, everything(), points, positions, signals()))
    turned = encode(filters, everything(), points @ rotation.T, positions @ rotation.T, signals())
    after = filters.split(turned)
    vectors = np.einsum("ij,akjc->akic", rotation, before[1])
    np.testing.assert_allclose(after[1], vectors, rtol=0, atol=1e-11 * np.abs(vectors).max())
    for l, (x, y) in enumerate(zip(before, after, strict=True)):
        lengths = np.linalg.norm(x, axis=2)
        np.testing.assert_allclose(np.linalg.norm(y, axis=2), lengths, rtol=1e-9)
        mirrored = filters.split(encode(filters, everything(), -points, -positions, signals()))[l]
        np.testing.assert_allclose(mirrored, (-1) ** l * x, atol=1e-11 * np.abs(x).max())


@pytest.mark.parametrize("kind", FILTERS)
def test_split_and_join_are_inverse(kind):
    filters = FILTERS[kind]
    assert filters.rows == 5 + 4 * 3 + 3 * 5 + 2 * 7
    rows = coefficients(filters)
    parts = filters.split(rows)
    assert [part.shape[1:3] for part in parts] == [(5, 1), (4, 3), (3, 5), (2, 7)]
    np.testing.assert_array_equal(filters.join(parts), rows)
    # The function before the component, and l before both.
    np.testing.assert_array_equal(parts[1][1, 2, 1], rows[1, 5 + 2 * 3 + 1])


def test_scales_of_rows_make_gaussians_dimensionless():
    filters = Filters((3, 2), first=1.0, last=16.0)
    np.testing.assert_allclose(filters.scales, [1, 4, 16], rtol=1e-14)
    np.testing.assert_allclose(filters.row_scales, [1, 1, 1, 1, 1, 1, 2, 2, 2], rtol=1e-14)
    shells = replace(filters, kind="log-gaussian")
    np.testing.assert_array_equal(shells.row_scales, np.ones(9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": (3, 4)}, r"must not increase with l, but are \(3, 4\)"),
        ({"counts": ()}, r"must not increase with l, but are \(\)"),
        ({"counts": (3, 0)}, r"must be positive, but are \(3, 0\)"),
        ({"counts": (1,)}, "at least two numbers"),
        ({"cutoff": 0.0}, "the cutoff must be positive and finite, but is 0 bohr"),
        ({"cutoff": -1.0}, "the cutoff must be positive and finite, but is -1 bohr"),
        ({"cutoff": float("nan")}, "the cutoff must be positive and finite, but is nan bohr"),
        ({"cutoff": float("inf")}, "the cutoff must be positive and finite, but is inf bohr"),
        ({"first": 0.0}, "positive ends"),
        ({"last": float("inf")}, "positive ends"),
    ],
)
def test_settings_no_filters_can_be_made_of_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(Filters(), **changes).check()


@pytest.mark.parametrize("filters", [Filters(), FILTERS["log-gaussian"]])
def test_defaults_are_accepted(filters):
    filters.check()
    assert len(filters.scales) == filters.counts[0]
