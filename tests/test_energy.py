"""The total energy as a function: transformations, gradients, symmetry, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.reference import build_mole, kohn_sham
from kineticnet_jax.system import cast

FUNCTIONALS = ["tf", "vw", "tf+vw", "apbek", "lkt", "thakkar", "tf+0.2vw"]


def nodeless(system):
    """ψ as a sum of s functions: at a node, the energy of a GGA has a kink."""
    basis = system.density_basis
    labels = build_mole(system.molecule, basis.name).ao_labels(fmt=None)
    is_s = np.array([label[2].endswith("s") for label in labels])
    return kn.SqrtDensity(jnp.where(is_s, 1 / (1 + jnp.diag(basis.kinetic)), 0.0))


@pytest.mark.parametrize(
    ("functional", "xc"),
    [*((functional, "none") for functional in FUNCTIONALS)]
    + [("tf+vw", xc) for xc in ("lda", "pbe", "blyp")],
)
def test_gradient_with_respect_to_coefficients_is_a_finite_difference(prepared, functional, xc):
    system = prepared("LiH", level=1)
    energy = kn.total_energy(system, functional, xc)
    density = nodeless(system)
    rng = np.random.default_rng(2)
    basis = system.density_basis
    direction = basis.transform @ (
        rng.normal(size=len(basis.overlap)) / (1 + basis.kinetic_eigenvalues)
    )

    def along(t):
        return energy(kn.SqrtDensity(density.coefficients + t * direction))

    slope = jnp.vdot(jax.grad(energy)(density).coefficients, direction)
    h = 1e-4
    difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert slope == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_gradient_with_respect_to_a_sampled_density_is_a_finite_difference(prepared, functional):
    system = prepared("H2O", level=1)
    energy = kn.total_energy(system, functional, "pbe")
    start = kn.initial_density(system, "sad").on_grid(system)
    gradient = jax.grad(energy)(start)
    assert isinstance(gradient, kn.GridDensity)
    # A smooth relative change of n and of ∇n, so that no point is changed beyond positivity.
    change = jnp.cos(system.grid.points[:, 2])
    direction = kn.GridDensity(start.n * change, start.grad_n * change[:, None] * 0.5)
    slope = sum(
        jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )

    def along(t):
        return energy(jax.tree.map(lambda a, b: a + t * b, start, direction))

    h = 1e-3
    difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert slope == pytest.approx(float(difference), rel=1e-6)


def test_gradient_on_the_grid_is_weight_times_potential(prepared):
    system = prepared("H2O", level=1)
    density = kn.initial_density(system, "sad").on_grid(system)
    gradient = jax.grad(kn.total_energy(system, "tf", "none", hartree=False))(density)
    potential = (3 * np.pi**2) ** (2 / 3) / 2 * density.n ** (2 / 3) + system.external_potential
    np.testing.assert_allclose(gradient.n, system.grid.weights * potential, rtol=1e-10)
    assert np.all(gradient.grad_n == 0)


@pytest.mark.parametrize("functional", ["tf+vw", "lkt", "thakkar"])
def test_hessian_vector_products_are_differences_of_gradients(prepared, functional):
    system = prepared("LiH", level=1)
    energy = kn.total_energy(system, functional, "blyp")
    density = nodeless(system)
    rng = np.random.default_rng(3)
    basis = system.density_basis
    v = basis.transform @ (rng.normal(size=len(basis.overlap)) / (1 + basis.kinetic_eigenvalues))
    _, product = jax.jvp(jax.grad(energy), (density,), (kn.SqrtDensity(v),))
    h = 1e-4

    def gradient(t):
        return jax.grad(energy)(kn.SqrtDensity(density.coefficients + t * v)).coefficients

    difference = (8 * (gradient(h) - gradient(-h)) - (gradient(2 * h) - gradient(-2 * h))) / (
        12 * h
    )
    scale = np.abs(product.coefficients).max()
    np.testing.assert_allclose(product.coefficients, difference, atol=1e-6 * scale)


def test_jit_and_vmap_over_densities(prepared):
    system = prepared("H2", level=2)
    energy = kn.total_energy(system, "tf+vw")
    densities = [kn.initial_density(system, "random", seed) for seed in range(3)]
    one_by_one = [float(energy(density)) for density in densities]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *densities)
    np.testing.assert_allclose(jax.vmap(energy)(stacked), one_by_one, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(energy))(stacked), one_by_one, rtol=1e-12)
    sampled = jax.vmap(lambda density: density.on_grid(system))(stacked)
    on_grid = jax.vmap(energy)(sampled)
    np.testing.assert_allclose(on_grid, one_by_one, atol=1e-5)
    gradients = jax.vmap(jax.grad(energy))(stacked).coefficients
    np.testing.assert_allclose(
        gradients[1], jax.grad(energy)(densities[1]).coefficients, atol=1e-10
    )


def test_energy_is_a_pytree_that_does_not_recompile_for_another_geometry(prepared, molecule):
    traces = []

    @jax.jit
    def evaluate(energy, density):
        traces.append(None)
        return energy(density)

    for length in (0.7, 0.8):
        other = kn.Molecule.from_string(f"2\n\nH 0 0 0\nH 0 0 {length}")
        system = kn.prepare(other, grid_level=2)
        energy, density = kn.total_energy(system, "vw"), kn.initial_density(system, "hcore")
        assert evaluate(energy, density) == pytest.approx(float(energy(density)), rel=1e-13)
    assert len(traces) == 1


def test_components_add_up_in_the_order_of_tables(prepared):
    system = prepared("H2O", level=2)
    energy, density = kn.total_energy(system, "lkt"), kn.initial_density(system)
    components = energy.components(density)
    assert list(components) == ["kinetic", "hartree", "xc", "external", "nuclear"]
    assert sum(map(float, components.values())) == pytest.approx(float(energy(density)), rel=1e-14)


def test_rigid_motion_and_exchange_of_like_atoms_change_nothing(molecule, prepared):
    water = molecule("H2O")
    angle = 0.7
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    moved = kn.Molecule(water.charges[[0, 2, 1]], (water.positions @ rotation.T + 3.0)[[0, 2, 1]])
    expected = kn.optimize_density(prepared("H2O", density_basis="reference"), "tf+vw").energy
    system = kn.prepare(moved, density_basis="reference")
    # The grid does not turn with the molecule: what is left is quadrature error.
    assert kn.optimize_density(system, "tf+vw").energy == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("functional", ["tf+vw", "lkt", "apbek", "thakkar"])
@pytest.mark.parametrize("name", ["H2", "H2O"])
def test_float32_on_the_grid_loses_hundredths_of_a_millihartree(prepared, name, functional):
    system = prepared(name)
    single = cast(system, np.float32)
    density = kn.initial_density(system)
    exact, slope = jax.value_and_grad(kn.total_energy(system, functional))(density)
    value, found = jax.value_and_grad(kn.total_energy(single, functional))(density)
    assert value.dtype == jnp.float64
    assert float(value) == pytest.approx(float(exact), abs=3e-5)
    difference = found.coefficients - slope.coefficients
    assert jnp.linalg.norm(difference) < 1e-5 * jnp.linalg.norm(slope.coefficients)


@pytest.mark.parametrize("functional", ["tf+vw", "lkt", "apbek", "thakkar"])
@pytest.mark.parametrize("name", ["H2", "H2O"])
def test_float32_alone_loses_less_than_half_a_millihartree(prepared, name, functional):
    system = prepared(name)
    density = kn.initial_density(system)
    exact = kn.total_energy(system, functional)(density)
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float32), density)
    with jax.enable_x64(False):
        energy = kn.total_energy(cast(system, np.float32), functional)
        value, gradient = jax.value_and_grad(energy)(rounded)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(float(exact), abs=5e-4)
    assert np.all(np.isfinite(gradient.coefficients))


def test_kinetic_energy_of_two_electrons_is_exact(prepared, molecule):
    for name in ("He", "HeH+", "H3+"):
        state = kohn_sham(molecule(name), "pbe", "cc-pvdz")
        orbital = state.orbitals[:, 0] * np.sqrt(2)
        system = prepared(name)
        energy = kn.kinetic_energy(
            kn.load_functional("vw"), system, kn.SqrtDensity(jnp.array(orbital))
        )
        assert energy == pytest.approx(state.components["kinetic"], rel=1e-10)


def test_functionals_by_name():
    assert kn.load_functional("TF+VW") is kn.load_functional("tf+vw")
    assert kn.load_functional("tf+1/9vw").vw_fraction == pytest.approx(1 / 9)
    assert kn.load_functional("tf+0.2vw").vw_fraction == 0.2
    for name, message in [
        ("tf+wv", "did you mean 'tf\\+vw'"),
        ("qqqq", "known are apbek, four-electron, lkt"),
        ("tf+1/0vw", "divides by zero"),
    ]:
        with pytest.raises(InputError, match=message):
            kn.load_functional(name)


def test_a_users_functional_is_used_like_any_other(prepared):
    system = prepared("H2", level=2)

    def gradient_expansion(molecule, grid, density):
        tf, vw = kn.load_functional("tf"), kn.load_functional("vw")
        return tf(molecule, grid, density) + vw(molecule, grid, density) / 9

    density = kn.initial_density(system)
    functional = jax.tree_util.Partial(gradient_expansion)
    value = kn.kinetic_energy(functional, system, density)
    expected = kn.kinetic_energy(kn.load_functional("tf+1/9vw"), system, density)
    assert value == pytest.approx(float(expected), abs=1e-5)


def test_unknown_xc_functional_is_refused(prepared):
    with pytest.raises(InputError, match="unknown xc functional 'b3lyp': did you mean 'blyp'"):
        kn.total_energy(prepared("H2"), "vw", "b3lyp")
