"""Curvatures of the total energy: finite differences, a minimum and a saddle point."""

import jax.numpy as jnp
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.curvature import energy_hessian, lowest_curvatures
from kineticnet_jax.optimize import density_of, retract, variables


def test_hessian_is_that_of_finite_differences(prepared):
    system = prepared("H2", level=1)
    energy, density = kn.total_energy(system, "tf+vw"), kn.initial_density(system, "minao")
    z = variables(system, density)
    scale = 1 / (system.density_basis.kinetic_eigenvalues + 1.0)
    generator = np.random.default_rng(0)
    for _ in range(3):
        direction = jnp.asarray(generator.normal(size=len(z)))
        # Tangential: at constant N in first order.
        direction -= scale * z * jnp.vdot(scale * z, direction) / jnp.sum((scale * z) ** 2)

        def along(step, direction=direction):
            # The Hessian is in units in which z is y √½.
            moved = retract(system, z + step * direction / np.sqrt(2))
            return float(energy(density_of(system, moved)))

        h = 1e-3
        expected = (along(h) - 2 * along(0.0) + along(-h)) / h**2
        hessian = energy_hessian(energy, density)
        assert direction @ hessian @ direction == pytest.approx(expected, rel=1e-5)
    values, vectors = lowest_curvatures(energy, density, 2)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(hessian)[:2], rtol=1e-3)
    np.testing.assert_allclose(hessian @ vectors, vectors * values, atol=2e-2)


def test_minimum_and_saddle_point(prepared):
    """Of electrons that do not interact: the second state of a molecule is a saddle point."""
    system = prepared("H2", level=2)
    energy = kn.total_energy(system, "vw", "none", hartree=False)
    ground_state = kn.optimize_density(system, "vw", "none", hartree=False).density
    assert np.linalg.eigvalsh(energy_hessian(energy, ground_state))[0] > 0.1
    half = len(system.density_basis.kinetic_eigenvalues) // 2
    antisymmetric = np.zeros(2 * half)
    antisymmetric[[0, half]] = 1, -1
    excited = kn.SqrtDensity(jnp.asarray(antisymmetric))
    assert np.linalg.eigvalsh(energy_hessian(energy, excited))[0] < -0.1
