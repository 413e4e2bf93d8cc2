"""Density representations and starting guesses."""

import jax.numpy as jnp
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.reference import GUESSES, kohn_sham


def electrons(system, density):
    return float(kn.integrate(system.grid.weights, density.on_grid(system).n))


def test_number_of_electrons_is_exact_for_any_coefficients(prepared):
    system = prepared("H2O")
    rng = np.random.default_rng(1)
    basis = system.density_basis
    for scale in (1e-6, 1.0, 1e6):
        noise = scale * rng.normal(size=len(basis.overlap)) / (1 + basis.kinetic_eigenvalues)
        density = kn.SqrtDensity(basis.transform @ noise)
        c, overlap = (
            np.asarray(x, dtype=np.longdouble)
            for x in (density.normalized(system).coefficients, basis.overlap)
        )
        # Rounded to float64 this sum alone is off by more.
        assert float(c @ overlap @ c) == pytest.approx(10, rel=1e-11)
        assert electrons(system, density) == pytest.approx(10, abs=1e-3)


def test_gradient_on_the_grid_is_that_of_the_density(prepared):
    system = prepared("H2O", density_basis="reference")
    density = kn.initial_density(system, "minao")
    sampled = density.on_grid(system)
    chosen = np.argsort(-np.asarray(sampled.n))[::400]
    points, h = jnp.asarray(system.grid.points)[chosen], 1e-4
    np.testing.assert_allclose(density.at(system, points), sampled.n[chosen], rtol=1e-10)
    for axis in range(3):
        shift = h * np.eye(3)[axis]
        n = [density.at(system, points + k * shift) for k in (-2, -1, 1, 2)]
        difference = (n[0] - 8 * n[1] + 8 * n[2] - n[3]) / (12 * h)
        np.testing.assert_allclose(sampled.grad_n[chosen, axis], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["HeH+", "H2O"])
def test_analytic_von_weizsaecker_energy_is_that_on_the_grid(prepared, name):
    system = prepared(name, density_basis="reference")
    density = kn.initial_density(system, "sad")
    vw = kn.load_functional("vw")
    on_grid = vw(system.molecule, system.grid, density.on_grid(system))
    assert density.von_weizsaecker(system) == pytest.approx(float(on_grid), abs=1e-4)
    analytic = float(density.von_weizsaecker(system))
    assert float(kn.kinetic_energy(vw, system, density)) == pytest.approx(analytic, rel=1e-14)


def test_orbital_density_is_that_of_its_density_matrix(prepared, molecule):
    system = prepared("H2O", density_basis="reference")
    state = kohn_sham(molecule("H2O"), "blyp", "cc-pvdz")
    from_orbitals = kn.OrbitalDensity.from_kohn_sham(state).on_grid(system)
    size = len(state.orbitals)
    samples = np.asarray(system.density_basis.on_grid.matrix).reshape(size, 4, -1)
    n = np.einsum("mg,mn,ng->g", samples[:, 0], state.density_matrix, samples[:, 0])
    np.testing.assert_allclose(from_orbitals.n, n, rtol=1e-9, atol=1e-14)
    grad_n = 2 * np.einsum(
        "xmg,mn,ng->gx", samples[:, 1:].swapaxes(0, 1), state.density_matrix, samples[:, 0]
    )
    np.testing.assert_allclose(from_orbitals.grad_n, grad_n, rtol=1e-8, atol=1e-12)
    again = kn.OrbitalDensity.from_density_matrix(
        state.positions, state.basis, state.density_matrix
    ).on_grid(system)
    np.testing.assert_allclose(again.n, n, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", ["LiH", "H2O"])
def test_guesses_are_densities_without_nodes(prepared, name, guess):
    system = prepared(name)
    density = kn.initial_density(system, guess)
    psi, _ = density.amplitude(system)
    n = psi**2
    total = system.n_electrons
    assert kn.integrate(system.grid.weights, n) == pytest.approx(total, rel=2e-3)
    sign = jnp.sign(kn.integrate(system.grid.weights, psi))
    wrong = kn.integrate(system.grid.weights, jnp.where(sign * psi < 0, n, 0.0))
    assert wrong / total < 0.01


def test_core_hamiltonian_guess_of_two_electrons_is_its_lowest_orbital(prepared, molecule):
    from kineticnet_jax.reference import guess_density_matrix

    system = prepared("H2")
    matrix = guess_density_matrix(molecule("H2"), "cc-pvdz", "hcore")
    c = kn.initial_density(system, "hcore").coefficients
    np.testing.assert_allclose(np.outer(c, c), matrix, atol=1e-6)


def test_random_guess_is_seeded(prepared):
    system = prepared("H2")
    first, again, other = (kn.initial_density(system, "random", seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    assert np.abs(first.coefficients - other.coefficients).max() > 1e-3


def test_unknown_guess_is_refused(prepared):
    with pytest.raises(InputError, match="unknown guess 'saad': did you mean 'sad'"):
        kn.initial_density(prepared("H2"), "saad")
