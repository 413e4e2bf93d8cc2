"""The Kohn–Sham reference: agreement with plain PySCF, fallback, failure."""

import numpy as np
import pytest
from pyscf import dft

from kineticnet_jax import ConvergenceError, InputError
from kineticnet_jax.reference import build_mole, guess_density_matrix, kohn_sham
from kineticnet_jax.reference.kohn_sham import PYSCF_XC


@pytest.mark.parametrize("xc", PYSCF_XC)
def test_energy_is_that_of_plain_pyscf(molecule, xc):
    state = kohn_sham(molecule("H2O"), xc, "cc-pvdz")
    field = dft.RKS(build_mole(molecule("H2O"), "cc-pvdz"), xc=PYSCF_XC[xc])
    field.conv_tol = 1e-10
    # On angular grids of 266 points where ours, without negative weights, have 302.
    assert state.energy == pytest.approx(field.kernel(), abs=1e-7)
    assert sum(state.components.values()) == pytest.approx(state.energy, abs=1e-8)


def test_results_are_arrays_of_a_ground_state(molecule):
    state = kohn_sham(molecule("H2O"), "blyp", "cc-pvdz")
    assert list(state.occupations) == [2.0] * 5 + [0.0] * 19
    assert np.all(np.diff(state.orbital_energies) >= 0)
    occupied = state.orbitals[:, :5]
    np.testing.assert_allclose(state.density_matrix, 2 * occupied @ occupied.T, atol=1e-12)
    assert state.basis.size == 24
    for value in (state.density_matrix, state.orbitals, state.orbital_energies):
        assert type(value) is np.ndarray


def test_density_fit_costs_a_hundredth_of_a_millihartree(molecule):
    exact, fitted = (
        kohn_sham(molecule("H2O"), "blyp", "cc-pvdz", density_fit=fit) for fit in (False, True)
    )
    assert 0 < abs(fitted.energy - exact.energy) < 1e-5
    for name, value in exact.components.items():
        assert fitted.components[name] == pytest.approx(value, abs=1e-4)


def test_second_order_method_takes_over_when_diis_fails(molecule, monkeypatch):
    exact = kohn_sham(molecule("LiH"), "blyp", "cc-pvdz").energy
    used = []
    newton = dft.rks.RKS.newton

    def counted(field):
        used.append(field.converged)
        return newton(field)

    monkeypatch.setattr(dft.rks.RKS, "newton", counted)
    # Three cycles are too few for DIIS, and enough for Newton's method from there.
    rescued = kohn_sham(molecule("LiH"), "blyp", "cc-pvdz", max_cycles=3)
    assert used == [False]
    assert rescued.energy == pytest.approx(exact, abs=1e-7)


def test_failure_of_both_methods_is_an_error_that_says_what_to_do(molecule):
    with pytest.raises(ConvergenceError, match="H2O did not converge in 1 cycles of DIIS"):
        kohn_sham(molecule("H2O"), "blyp", "cc-pvdz", max_cycles=1)


def test_unknown_names_are_refused(molecule):
    with pytest.raises(InputError, match="unknown xc functional 'pb': did you mean 'pbe'"):
        kohn_sham(molecule("He"), "pb")
    with pytest.raises(InputError, match="unknown guess 'random'"):
        guess_density_matrix(molecule("He"), "cc-pvdz", "random")
