"""Gaussian functions, their derivatives and potentials, against PySCF and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf import gto
from scipy.special import gamma, gammainc, sph_harm_y

from kineticnet_jax.basis import (
    Basis,
    Shell,
    coulomb_potential,
    evaluate,
    evaluate_laplacian,
    evaluate_with_gradient,
)
from kineticnet_jax.boys import SWITCH, boys
from kineticnet_jax.errors import InputError
from kineticnet_jax.harmonics import solid_harmonics
from kineticnet_jax.reference import build_mole, extract_basis

POINTS = np.random.default_rng(0).normal(size=(400, 3)) * np.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize("l", range(7))
def test_solid_harmonics_are_those_of_scipy(l):
    r = np.linalg.norm(POINTS, axis=1)
    theta, phi = np.arccos(POINTS[:, 2] / r), np.arctan2(POINTS[:, 1], POINTS[:, 0])
    order = (1, -1, 0) if l == 1 else range(-l, l + 1)
    for values, m in zip(solid_harmonics(l, jnp.array(POINTS)), order, strict=True):
        # SciPy's phase (-1)^m is not ours.
        y = sph_harm_y(l, abs(m), theta, phi) * (-1.0) ** m
        expected = y.real if m == 0 else np.sqrt(2) * (y.real if m > 0 else y.imag)
        np.testing.assert_allclose(values, r**l * expected, atol=1e-11 * (r**l).max())


@pytest.mark.parametrize("order", range(8))
def test_boys_function_is_an_incomplete_gamma_function(order):
    t = np.concatenate([np.logspace(-3, 6, 200), [SWITCH - 1e-9, SWITCH, SWITCH + 1e-9]])
    half = order + 0.5
    expected = gamma(half) * gammainc(half, t) / (2 * t**half)
    np.testing.assert_allclose(boys(order, jnp.array(t)), expected, rtol=2e-13)
    assert boys(order, jnp.zeros(1))[0] == pytest.approx(1 / (2 * order + 1), rel=1e-15)


def test_boys_function_derivative():
    t = jnp.array([0.0, 0.3, 5.0, 27.0, 40.0, 300.0])
    derivative = jax.vmap(jax.grad(lambda x: boys(2, x)))(t)
    np.testing.assert_allclose(derivative, -boys(3, t), rtol=1e-14)
    h = 1e-5
    difference = (boys(2, t[1:] + h) - boys(2, t[1:] - h)) / (2 * h)
    np.testing.assert_allclose(derivative[1:], difference, rtol=1e-5, atol=1e-12)


# cc-pV5Z has l up to 5 on oxygen, cc-pVDZ general contractions, even-tempered sets large exponents.
@pytest.mark.parametrize("basis", ["cc-pv5z", "cc-pvdz", "6-31g*", "even-tempered", "unc-cc-pvtz"])
def test_values_gradients_laplacians_agree_with_pyscf(molecule, basis):
    mol = build_mole(molecule("H2O"), basis)
    expected = mol.eval_gto("GTOval_sph_deriv2", POINTS)
    functions, positions, points = extract_basis(mol), mol.atom_coords(), jnp.array(POINTS)
    with_gradient = evaluate_with_gradient(functions, jnp.array(positions), points)
    np.testing.assert_allclose(with_gradient, np.moveaxis(expected[:4], -1, 0), atol=1e-10)
    values = evaluate(functions, jnp.array(positions), points)
    np.testing.assert_allclose(values, expected[0].T, atol=1e-10)
    laplacian = evaluate_laplacian(functions, jnp.array(positions), points)
    np.testing.assert_allclose(
        laplacian, (expected[4] + expected[7] + expected[9]).T, rtol=1e-10, atol=1e-10
    )


def test_values_differentiate_with_respect_to_nuclear_positions(molecule):
    mol = build_mole(molecule("H2O"), "cc-pvtz")
    functions, positions, points = extract_basis(mol), jnp.array(mol.atom_coords()), POINTS[:20]

    def values(x):
        return evaluate(functions, positions.at[1, 2].set(x), jnp.array(points))

    derivative = jax.jacfwd(values)(positions[1, 2])
    on_atom = np.array([label[0] == 1 for label in mol.ao_labels(fmt=None)])
    gradient = mol.eval_gto("GTOval_ip_sph", points)[2].T
    np.testing.assert_allclose(derivative, np.where(on_atom[:, None], -gradient, 0.0), atol=1e-10)


def test_coulomb_potentials_agree_with_pyscf(molecule):
    mol = build_mole(molecule("H2O"), "coulomb-fit")
    expected = gto.mole.intor_cross("int2c2e", mol, gto.fakemol_for_charges(POINTS))
    positions = jnp.array(mol.atom_coords())
    values = coulomb_potential(extract_basis(mol), positions, jnp.array(POINTS))
    # The point charges of PySCF are Gaussians of exponent 1e16, hence not quite points.
    np.testing.assert_allclose(values, expected, atol=1e-10)


def test_order_of_functions_is_that_of_the_shells():
    shells = [Shell(0, 1, (1.0,), (1.0,)), Shell(0, 0, (2.0, 3.0), (1.0, 0.5))]
    basis = Basis.from_shells(shells)
    x = jnp.array([[0.3, -0.2, 0.5]])
    values = evaluate(basis, jnp.zeros((1, 3)), x)[:, 0]
    r2 = 0.38
    p = np.sqrt(3 / (4 * np.pi)) * np.exp(-r2) * np.array(x[0])
    s = np.sqrt(1 / (4 * np.pi)) * (np.exp(-2 * r2) + 0.5 * np.exp(-3 * r2))
    np.testing.assert_allclose(values, [*p, s], rtol=1e-14)


def test_too_high_angular_momentum_is_refused():
    with pytest.raises(InputError, match="l = 7"):
        Basis.from_shells([Shell(0, 7, (1.0,), (1.0,))])
