"""The network: symmetries, bounds, derivatives, size consistency, and its configuration."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_molecule
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.kinetic import C_F
from kineticnet_jax.nn.config import SIZES, NetworkConfig, network_config
from kineticnet_jax.nn.convolution import Filters, build_operators
from kineticnet_jax.nn.neighbors import all_neighbors, find_neighbors
from kineticnet_jax.nn.network import Geometry, KineticNet

CONFIGS = {
    "pauli": network_config("tiny", (1, 2, 8), target="pauli", inputs="gradient", vectors=3),
    "total": network_config("tiny", (1, 2, 8), target="total", inputs="density", vectors=2),
}
DTYPES = [np.float64, np.float32]
TOLERANCES = {np.float64: 1e-10, np.float32: 1e-5}
# Larger parameters make rounding errors of the input too large for single precision.
SCALES = {np.float64: [1.0, 3.0], np.float32: [1.0]}
# The shape of all cases, so that little is compiled: smaller ones are filled up.
ATOMS, POINTS = 4, 2600

for_all = pytest.mark.parametrize(
    ("target", "dtype"), [(target, dtype) for target in CONFIGS for dtype in DTYPES]
)
few = settings(max_examples=6, deadline=None, derandomize=True, database=None)


class Case(NamedTuple):
    molecule: kn.Molecule
    grid: kn.Grid
    density: kn.GridDensity


class Result(NamedTuple):
    """Output, its gradient, its slope along a direction, and the Hessian times the direction."""

    output: object
    gradient: kn.GridDensity
    slope: jax.Array
    product: kn.GridDensity


def make_case(charges, positions, points, weights, n, grad_n):
    return Case(
        kn.Molecule(np.asarray(charges), np.asarray(positions)),
        kn.Grid(jnp.asarray(points), jnp.asarray(weights)),
        kn.GridDensity(jnp.asarray(n), jnp.asarray(grad_n)),
    )


def arrays(case):
    """Charges, positions, points, weights, n, ∇n."""
    return [np.asarray(x) for x in jax.tree.leaves(case)]


def cast(tree, dtype):
    """Floating-point arrays in another precision."""

    def convert(x):
        x = np.asarray(x)
        return jnp.asarray(x, dtype=dtype if x.dtype.kind == "f" else x.dtype)

    with np.errstate(under="ignore"):
        return jax.tree.map(convert, tree)


def model_density(molecule, points):
    """Two electrons in the 1s shell of the bare nucleus and the others in a wider one."""
    vectors = np.asarray(points)[:, None] - np.asarray(molecule.positions)
    r = np.linalg.norm(vectors, axis=-1) + 1e-30
    n, grad_n = np.zeros(len(points)), np.zeros((len(points), 3))
    for i, z in enumerate(np.asarray(molecule.charges)):
        for zeta, electrons in ((float(z), min(z, 2)), (1.3, max(z - 2, 0))):
            shell = electrons * zeta**3 / np.pi * np.exp(-2 * zeta * r[:, i])
            n += shell
            grad_n -= (2 * zeta * shell / r[:, i])[:, None] * vectors[:, i]
    return kn.GridDensity(jnp.asarray(n), jnp.asarray(grad_n))


@cache
def bare(name):
    """A small molecule with a density that no two points share."""
    molecule = make_molecule(name)
    grid = kn.molecular_grid(molecule, 0)
    density = model_density(molecule, grid.points)
    rng = np.random.default_rng(0)
    n = np.asarray(density.n) * np.exp(0.3 * rng.normal(size=len(grid.weights)))
    noise = 0.5 * n[:, None] * rng.normal(size=(len(n), 3))
    return make_case(*arrays((molecule, grid)), n, density.grad_n + noise)


def fill(case, seed=0):
    """Adds atoms of charge zero, and points of weight zero with a density."""
    rng = np.random.default_rng(seed)
    charges, positions, points, weights, n, grad_n = arrays(case)
    atoms, rows = ATOMS - len(charges), POINTS - len(n)
    extra = (
        np.zeros(atoms, dtype=np.int64),
        rng.normal(size=(atoms, 3)),
        rng.normal(size=(rows, 3)),
        np.zeros(rows),
        rng.uniform(size=rows),
        rng.normal(size=(rows, 3)),
    )
    before = (charges, positions, points, weights, n, grad_n)
    return make_case(*(np.concatenate(pair) for pair in zip(before, extra, strict=True)))


@cache
def filled(name):
    return fill(bare(name))


@cache
def make_params(target, seed=0, scale=1.0):
    """Random parameters. Fewer inputs need fewer columns, which saves compiling another `init`."""
    params = KineticNet(CONFIGS["pauli"]).init(jax.random.key(seed))
    shapes = jax.eval_shape(KineticNet(CONFIGS[target]).init, jax.random.key(seed))

    def cut(shape, x):
        return scale * x[tuple(slice(size) for size in shape.shape)]

    return jax.tree.map(cut, shapes, params)


@cache
def compiled(target):
    return jax.jit(KineticNet(CONFIGS[target]).apply)


@cache
def compiled_gradient(target):
    """Output and its gradient."""

    @jax.jit
    def function(params, case):
        def energy(density):
            output = KineticNet(CONFIGS[target]).apply(params, case.molecule, case.grid, density)
            return output.energy, output

        (_, output), gradient = jax.value_and_grad(energy, has_aux=True)(case.density)
        return output, gradient

    return function


@cache
def compiled_derivatives(target):
    """The gradient and the Hessian times a direction."""

    @jax.jit
    def function(params, case, direction):
        def first(density):
            return compiled_gradient(target)(params, case._replace(density=density))

        (output, gradient), (slopes, product) = jax.jvp(first, (case.density,), (direction,))
        return Result(output, gradient, slopes.energy, product)

    return function


def evaluate(target, params, case, direction=None, dtype=np.float64):
    case, direction = cast((case, case.density if direction is None else direction), dtype)
    return compiled_derivatives(target)(params, case, direction)


def potentials(gradient, case, dtype):
    """Derivatives with respect to n and ∇n; in float64 those of the integrand."""
    weights = np.asarray(case.grid.weights)
    real = weights > 1e-30
    if dtype == np.float32:
        weights = np.ones_like(weights)
    v, u = np.asarray(gradient.n, float), np.asarray(gradient.grad_n, float)
    return v[real] / weights[real], u[real] / weights[real, None]


def assert_same(energy, gradient, expected, case, dtype, order=slice(None), turn=None):
    """Equal energies, and equal potentials after points and vectors are brought back."""
    turn = np.eye(3) if turn is None else turn
    gradient = kn.GridDensity(gradient.n[order], gradient.grad_n[order] @ turn)
    tolerance = TOLERANCES[dtype]
    assert energy == pytest.approx(float(expected.output.energy), rel=tolerance)
    pairs = list(
        zip(
            potentials(gradient, case, dtype),
            potentials(expected.gradient, case, dtype),
            strict=True,
        )
    )
    scale = max(np.abs(x).max() for _, x in pairs)
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


def random_matrix(seed, reflect):
    """A random rotation, or with a reflection."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * np.linalg.det(matrix) * (-1 if reflect else 1)


@for_all
@given(seed=st.integers(0, 2**32 - 1), reflect=st.booleans(), data=st.data())
@few
def test_rotation_and_reflection_change_nothing(target, dtype, seed, reflect, data):
    scale = data.draw(st.sampled_from(SCALES[dtype]))
    params, case = make_params(target, seed % 3, scale), filled("H2O")
    turn = random_matrix(seed, reflect)
    charges, positions, points, weights, n, grad_n = arrays(case)
    turned = make_case(charges, positions @ turn.T, points @ turn.T, weights, n, grad_n @ turn.T)
    result = evaluate(target, params, turned, dtype=dtype)
    expected = evaluate(target, params, case, dtype=dtype)
    assert_same(result.output.energy, result.gradient, expected, case, dtype, turn=turn)


@for_all
@pytest.mark.parametrize("change", ["shift", "atoms", "points", "filling"])
def test_shift_order_and_filling_change_nothing(target, dtype, change):
    case = filled("H2O")
    rng = np.random.default_rng(1)
    charges, positions, points, weights, n, grad_n = arrays(case)
    order = np.arange(POINTS)
    if change == "shift":
        shift = np.array([0.7, -1.1, 0.4])
        positions, points = positions + shift, points + shift
    elif change == "atoms":
        charges, positions = charges[[3, 2, 0, 1]], positions[[3, 2, 0, 1]]
    elif change == "points":
        order = rng.permutation(POINTS)
        points, weights, n, grad_n = (x[order] for x in (points, weights, n, grad_n))
    else:
        # On a nucleus, and with a density of another magnitude.
        positions, n = positions.copy(), np.where(weights > 0, n, 1e3)
        positions[3] = positions[0]
    changed = make_case(charges, positions, points, weights, n, grad_n)
    for scale in SCALES[dtype]:
        params = make_params(target, 1, scale)
        result = evaluate(target, params, changed, dtype=dtype)
        expected = evaluate(target, params, case, dtype=dtype)
        back = np.argsort(order)
        assert_same(result.output.energy, result.gradient, expected, case, dtype, back)
        unused = np.asarray(changed.grid.weights) == 0
        assert np.all(np.asarray(result.gradient.n)[unused] == 0)


@pytest.mark.parametrize(("target", "dtype"), [("pauli", np.float64), ("total", np.float32)])
def test_padding_changes_nothing(target, dtype):
    case = bare("H2O")
    for scale in SCALES[dtype]:
        params = make_params(target, 2, scale)
        output, gradient = compiled_gradient(target)(params, cast(case, dtype))
        expected = evaluate(target, params, filled("H2O"), dtype=dtype)
        size = len(case.density.n)
        shortened = kn.GridDensity(expected.gradient.n[:size], expected.gradient.grad_n[:size])
        expected = expected._replace(gradient=shortened)
        assert_same(output.energy, gradient, expected, case, dtype)
        tau = expected.output.tau[:size]
        np.testing.assert_allclose(
            output.tau, tau, rtol=0, atol=TOLERANCES[dtype] * float(tau.max())
        )


KINDS = ["smooth", "spiky", "zero", "single point", "steep"]


def wild_case(kind, exponent, seed):
    """Densities no molecule has, around 10^exponent, and a direction of that size."""
    rng = np.random.default_rng(seed)
    charges, positions, points, weights, n, grad_n = arrays(filled("H2O"))
    if kind == "spiky":
        n = np.exp(np.clip(4 * rng.normal(size=POINTS), -30, 6))
        grad_n = n[:, None] * rng.normal(size=(POINTS, 3))
    elif kind == "zero":
        n, grad_n = np.zeros(POINTS), np.zeros((POINTS, 3))
    elif kind == "single point":
        only = np.arange(POINTS) == rng.choice(np.flatnonzero(weights > 0))
        n, grad_n = np.where(only, 1.0, 0.0), np.where(only[:, None], grad_n, 0.0)
    factor = 10.0**exponent
    n, grad_n = n * factor, grad_n * factor
    if kind == "steep":
        n, grad_n = np.asarray(filled("H2O").density.n), factor * rng.normal(size=(POINTS, 3))
    direction = kn.GridDensity(
        jnp.asarray(factor * rng.normal(size=POINTS)),
        jnp.asarray(factor * rng.normal(size=(POINTS, 3))),
    )
    return make_case(charges, positions, points, weights, n, grad_n), direction


def wild(kinds, low, high):
    return given(
        kind=st.sampled_from(kinds),
        exponent=st.floats(low, high),
        seed=st.integers(0, 2**32 - 1),
        scale=st.sampled_from([1.0, 3.0]),
    )


wild_settings = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


def check_bounds(target, dtype, kind, exponent, seed, scale):
    case, direction = wild_case(kind, exponent, seed)
    result = evaluate(target, make_params(target, seed % 3, scale), case, direction, dtype)
    weights, n = (np.asarray(x, float) for x in cast((case.grid.weights, case.density.n), dtype))
    energy, tau = float(result.output.energy), np.asarray(result.output.tau, float)
    assert np.isfinite(energy)
    assert energy >= 0
    assert np.all(np.isfinite(tau))
    assert np.all(tau >= 0)
    # Products below the smallest normal number are lost.
    rounding = 50 * float(np.finfo(dtype).eps)
    lost = 100 * float(np.finfo(dtype).tiny) * float(weights.sum())
    assert weights @ tau == pytest.approx(energy, rel=rounding, abs=lost)
    if target == "pauli":
        assert energy <= C_F * (weights @ n ** (5 / 3)) * (1 + rounding) + lost


def check_derivatives(target, dtype, kind, exponent, seed, scale):
    case, direction = wild_case(kind, exponent, seed)
    result = evaluate(target, make_params(target, seed % 3, scale), case, direction, dtype)
    for leaf in jax.tree.leaves(result):
        assert leaf.dtype == dtype
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("target", CONFIGS)
@wild(KINDS, -30, 12)
@wild_settings
def test_bounds_hold_for_any_density(target, kind, exponent, seed, scale):
    check_bounds(target, np.float64, kind, exponent, seed, scale)


@pytest.mark.parametrize("target", CONFIGS)
@wild(KINDS, -30, 8)
@wild_settings
def test_bounds_hold_in_single_precision(target, kind, exponent, seed, scale):
    check_bounds(target, np.float32, kind, exponent, seed, scale)


def test_tau_integrates_to_an_energy_far_below_its_bound_in_single_precision():
    params = make_params("pauli")
    last = params["head"][-1] | {"bias": jnp.full(1, -60.0)}
    params = params | {"head": [*params["head"][:-1], last]}
    case = filled("H2O")
    output = evaluate("pauli", params, case, dtype=np.float32).output
    integral = np.asarray(case.grid.weights) @ np.asarray(output.tau, float)
    assert integral == pytest.approx(float(output.energy), rel=1e-5, abs=0)


@pytest.mark.parametrize("target", CONFIGS)
@wild(KINDS, -30, 12)
@wild_settings
def test_derivatives_are_finite_for_any_density(target, kind, exponent, seed, scale):
    check_derivatives(target, np.float64, kind, exponent, seed, scale)


@pytest.mark.parametrize("target", CONFIGS)
@wild(["smooth", "spiky", "zero", "single point"], -5, 8)
@wild_settings
def test_derivatives_are_finite_in_single_precision(target, kind, exponent, seed, scale):
    check_derivatives(target, np.float32, kind, exponent, seed, scale)


@pytest.mark.parametrize("target", CONFIGS)
@wild(["smooth", "spiky", "zero", "single point"], -30, -5)
@wild_settings
def test_derivatives_of_faint_densities_are_finite_in_single_precision(
    target, kind, exponent, seed, scale
):
    check_derivatives(target, np.float32, kind, exponent, seed, scale)


@pytest.mark.parametrize("target", CONFIGS)
@wild(["steep"], -5, 8)
@wild_settings
def test_derivatives_at_steep_gradients_are_finite_in_single_precision(
    target, kind, exponent, seed, scale
):
    check_derivatives(target, np.float32, kind, exponent, seed, scale)


def directions(case, count=3):
    """Random relative changes of the density."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        n, grad_n = np.asarray(case.density.n), np.asarray(case.density.grad_n)
        yield kn.GridDensity(
            jnp.asarray(n * rng.normal(size=n.shape)),
            jnp.asarray((grad_n + n[:, None]) * rng.normal(size=grad_n.shape)),
        )


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("target", CONFIGS)
def test_derivatives_are_finite_differences(target, scale):
    # The third set of parameters does not saturate the bound.
    case, params = filled("H2O"), make_params(target, 2, scale)
    h = 1e-5
    for direction in directions(case):
        result = evaluate(target, params, case, direction)
        values = {}
        for t in (-2, -1, 1, 2):
            density = jax.tree.map(lambda n, v, t=t: n + t * h * v, case.density, direction)
            values[t] = evaluate(target, params, case._replace(density=density), direction)

        def difference(pick, values=values):
            x = {t: pick(value) for t, value in values.items()}
            return (8 * (x[1] - x[-1]) - (x[2] - x[-2])) / (12 * h)

        slope = float(difference(lambda value: value.output.energy))
        leaves = zip(jax.tree.leaves(result.gradient), jax.tree.leaves(direction), strict=True)
        assert sum(jnp.vdot(x, v) for x, v in leaves) == pytest.approx(slope, rel=1e-7)
        assert result.slope == pytest.approx(slope, rel=1e-7)
        for name in ("n", "grad_n"):
            expected = difference(lambda value, name=name: getattr(value.gradient, name))
            product = getattr(result.product, name)
            scale = max(float(np.abs(x).max()) for x in (expected, result.product.n))
            np.testing.assert_allclose(product, expected, rtol=0, atol=1e-6 * scale)


def test_tau_integrates_to_the_energy():
    for target in CONFIGS:
        for name in ("H2", "HeH+", "H2O"):
            case = filled(name)
            output = evaluate(target, make_params(target), case).output
            integral = kn.integrate(case.grid.weights, output.tau)
            assert output.energy == pytest.approx(float(integral), rel=1e-13)


@cache
def compiled_forces(target):
    network = KineticNet(CONFIGS[target])

    @jax.jit
    def function(params, case, positions):
        def energy(positions):
            molecule = kn.Molecule(case.molecule.charges, positions)
            return network.apply(params, molecule, case.grid, case.density).energy

        return jax.value_and_grad(energy)(positions)

    return function


def test_gradient_with_respect_to_positions_is_a_finite_difference():
    case, params = filled("HeH+"), make_params("total", 1)
    evaluate = compiled_forces("total")
    start = jnp.asarray(case.molecule.positions)
    _, gradient = evaluate(params, case, start)
    np.testing.assert_array_equal(gradient[2:], 0)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=start.shape))
    h = 1e-5
    x = {t: evaluate(params, case, start + t * h * direction)[0] for t in (-2, -1, 1, 2)}
    slope = (8 * (x[1] - x[-1]) - (x[2] - x[-2])) / (12 * h)
    assert jnp.vdot(gradient, direction) == pytest.approx(float(slope), rel=1e-6)


def test_padding_at_the_place_of_an_atom_leaves_its_gradient_finite():
    case, params = filled("HeH+"), make_params("total", 1)
    start = jnp.asarray(case.molecule.positions)
    _, expected = compiled_forces("total")(params, case, start)
    _, gradient = compiled_forces("total")(params, case, start.at[2:].set(start[0]))
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


def distant_pair(distance=60.0):
    charges, positions, points, weights, n, grad_n = arrays(bare("H2O"))
    shift = np.array([0.0, distance, 0.0])
    rows = (
        (charges, charges),
        (positions, positions + shift),
        (points, points + shift),
        (weights, weights),
        (n, n),
        (grad_n, grad_n),
    )
    return make_case(*map(np.concatenate, rows))


@pytest.mark.parametrize("target", CONFIGS)
def test_energies_of_distant_molecules_add_up(target):
    for scale in (1.0, 3.0):
        params = make_params(target, 2, scale)
        single = evaluate(target, params, filled("H2O")).output.energy
        pair = compiled(target)(params, *distant_pair()).energy
        assert pair == pytest.approx(2 * float(single), rel=1e-12)


def test_neighbor_lists_and_stored_operators_change_nothing():
    network, params, case = KineticNet(CONFIGS["pauli"]), make_params("pauli", 2), distant_pair()
    filters = network.config.filters
    expected = compiled("pauli")(params, *case)
    neighbors = find_neighbors(case.molecule.positions, case.grid.points, filters.cutoff)
    assert not np.array_equal(neighbors.senders, all_neighbors(6, 1).senders)
    operators = build_operators(
        filters, neighbors, case.grid.points, jnp.asarray(case.molecule.positions)
    )
    scale = float(expected.tau.max())
    for geometry in (Geometry(neighbors), Geometry(neighbors, operators)):
        output = compiled("pauli")(params, *case, geometry)
        assert output.energy == pytest.approx(float(expected.energy), rel=1e-12)
        np.testing.assert_allclose(output.tau, expected.tau, rtol=0, atol=1e-12 * scale)


def test_vmap_over_geometries_equals_the_loop():
    params = make_params("pauli", 1)
    cases = [filled(name) for name in ("HeH+", "H2O")]
    one_by_one = [float(evaluate("pauli", params, case).output.energy) for case in cases]

    def energy(*leaves):
        return (
            KineticNet(CONFIGS["pauli"])
            .apply(
                params,
                kn.Molecule(leaves[0], leaves[1]),
                kn.Grid(leaves[2], leaves[3]),
                kn.GridDensity(leaves[4], leaves[5]),
            )
            .energy
        )

    stacked = [jnp.stack(leaves) for leaves in zip(*map(arrays, cases), strict=True)]
    energies = jax.jit(jax.vmap(energy))(*stacked)
    np.testing.assert_allclose(energies, one_by_one, rtol=1e-12)


def test_unknown_elements_are_refused_by_name():
    params, network = make_params("pauli"), KineticNet(CONFIGS["pauli"])
    case = bare("H2O")
    unknown = kn.Molecule(np.array([7, 6, 1]), case.molecule.positions)
    with pytest.raises(InputError, match="never seen C, N, it knows H, He, O"):
        network.apply(params, unknown, case.grid, case.density)


def test_padding_is_no_unknown_element():
    case = filled("HeH+")
    charges = np.asarray(case.molecule.charges)
    assert charges.tolist() == [2, 1, 0, 0]

    def energy(params, density):
        # The charges are not traced, so that they are checked.
        molecule = kn.Molecule(charges, case.molecule.positions)
        return KineticNet(CONFIGS["pauli"]).apply(params, molecule, case.grid, density).energy

    assert jax.eval_shape(energy, make_params("pauli"), case.density).shape == ()


def test_elements_make_a_difference():
    params, case = make_params("pauli"), filled("H2")
    other = case._replace(molecule=kn.Molecule(np.array([2, 1, 0, 0]), case.molecule.positions))
    energies = [float(evaluate("pauli", params, x).output.energy) for x in (case, other)]
    assert abs(energies[0] - energies[1]) > 1e-6


def test_a_network_without_interactions_and_bounds_takes_either_sign():
    config = replace(CONFIGS["pauli"], interactions=0, signed=True)
    network = KineticNet(config)
    case, evaluate = bare("H2"), jax.jit(network.apply)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    energies = []
    for seed in range(8):
        params = make_params("pauli", seed) | {"interactions": shapes["interactions"]}
        assert jax.tree.structure(params) == jax.tree.structure(shapes)
        output = evaluate(params, *case)
        energies.append(float(output.energy))
        integral = float(kn.integrate(case.grid.weights, output.tau))
        assert integral == pytest.approx(energies[-1], rel=1e-12)
    assert min(energies) < 0 < max(energies)


def test_parameters_are_in_single_precision():
    for leaf in jax.tree.leaves(make_params("pauli")):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elements": ()}, "elements must be ascending nuclear charges"),
        ({"elements": (8, 1)}, r"ascending nuclear charges, but are \(8, 1\)"),
        ({"elements": (1, 1)}, "ascending nuclear charges"),
        ({"elements": (0, 1)}, r"must be nuclear charges, but are \(0, 1\)"),
        ({"elements": (1, 300)}, "must be nuclear charges"),
        ({"target": "pauly"}, "unknown target 'pauly': did you mean 'pauli'"),
        ({"inputs": "gradients"}, "unknown inputs 'gradients': did you mean 'gradient'"),
        ({"channels": 0}, "channels must be at least 1, but is 0"),
        ({"features": 0}, "features must be at least 1, but is 0"),
        ({"hidden": -3}, "hidden must be at least 1, but is -3"),
        ({"interactions": -1}, "interactions must not be negative, but is -1"),
        ({"filters": Filters((2, 3))}, "must not increase with l"),
    ],
)
def test_settings_no_network_can_be_made_of_are_refused(changes, message):
    config = NetworkConfig((1, 8))
    config.check()
    # Not `replace`, because the tests check types as well.
    for name, value in changes.items():
        object.__setattr__(config, name, value)
    with pytest.raises(InputError, match=message):
        config.check()


def test_networks_by_name():
    config = network_config("small", (8, 1, 1), target="total")
    assert config.elements == (1, 8)
    assert config.target == "total"
    assert config.filters == SIZES["small"].filters
    with pytest.raises(InputError, match="unknown network size 'smal': did you mean 'small'"):
        network_config("smal", (1,))
    with pytest.raises(InputError, match="channels must be at least 1"):
        network_config("tiny", (1,), channels=0)


def test_larger_sizes_have_more_parameters():
    assert list(SIZES) == ["tiny", "small", "base"]
    counts = []
    for size in SIZES:
        network = KineticNet(network_config(size, (1, 8)))
        shapes = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
        counts.append(sum(leaf.size for leaf in shapes))
    assert all(a < b for a, b in pairwise(counts))


def energies_of_water(size, seeds, cases):
    """Energies of a random network for each seed and case, and those of Thomas and Fermi."""
    network = KineticNet(network_config(size, (1, 8)))
    evaluate = jax.jit(lambda params, case: network.apply(params, *case).energy)
    params = [network.init(jax.random.key(seed)) for seed in seeds]
    energies = np.array([[float(evaluate(p, case)) for case in cases] for p in params])
    tf = [C_F * float(case.grid.weights @ case.density.n ** (5 / 3)) for case in cases]
    return energies, np.array(tf)


def sampled(molecule, level):
    grid = kn.molecular_grid(molecule, level)
    return Case(molecule, grid, model_density(molecule, grid.points))


@pytest.mark.slow
def test_orientation_of_the_grid_hardly_matters():
    water = make_molecule("H2O")
    turned = [
        replace(water, positions=water.positions @ random_matrix(seed, False).T)
        for seed in range(6)
    ]
    cases = [sampled(molecule, 2) for molecule in (water, *turned)]
    energies, _ = energies_of_water("small", range(3), cases)
    assert np.abs(energies - energies[:, :1]).max() < 1e-4


@pytest.mark.slow
def test_energies_converge_with_the_grid_like_those_of_thomas_and_fermi():
    cases = [sampled(make_molecule("H2O"), level) for level in (2, 3, 4)]
    energies, tf = energies_of_water("tiny", range(3), cases)
    errors = np.abs(energies - energies[:, -1:])
    assert np.all(errors <= 3 * np.abs(tf - tf[-1]) + 1e-5)


@pytest.mark.parametrize("interactions", [0, 1, 2])
def test_shapes_are_those_of_random_parameters(interactions):
    config = replace(network_config("tiny", (1, 8)), interactions=interactions)
    network = KineticNet(config)
    expected, found = jax.eval_shape(network.init, jax.random.key(0)), network.shapes()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
