"""Figures show what they say."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import kineticnet_jax as kn
from kineticnet_jax.report import (
    plot_density_difference,
    plot_dissociation,
    plot_kinetic_energy_density,
    plot_solution,
)
from kineticnet_jax.units import BOHR_IN_ANGSTROM


def test_density_along_a_bond_is_symmetric_and_labelled(prepared, molecule):
    from kineticnet_jax.reference import kohn_sham

    system = prepared("H2", level=2)
    solution = kn.optimize_density(system, "vw")
    exact = kn.OrbitalDensity.from_kohn_sham(kohn_sham(molecule("H2"), "blyp", "cc-pvdz"))
    left, right = plot_solution(system, solution, exact).axes
    assert left.get_xlabel() == "position along the axis (Å)"
    assert left.get_ylabel() == "density (bohr⁻³)"
    reference, own = (line.get_ydata() for line in left.lines[2:])
    np.testing.assert_allclose(own, own[::-1], rtol=1e-5)
    np.testing.assert_allclose(own, reference, rtol=1e-3)
    nuclei = [line.get_xdata()[0] for line in left.lines[:2]]
    assert abs(nuclei[1] - nuclei[0]) == pytest.approx(0.74, abs=1e-9)
    assert len(right.lines[0].get_ydata()) == solution.steps + 1


def test_bent_molecule_is_shown_in_its_plane(prepared):
    system = prepared("H2O", level=1)
    solution = kn.optimize_density(system, "tf+vw", max_steps=5)
    left = plot_solution(system, solution).axes[0]
    texts = {text.get_text(): text.xy for text in left.texts}
    assert set(texts) == {"O", "H"}
    oxygen, hydrogen = np.array(texts["O"]), np.array(texts["H"])
    bond = np.linalg.norm(oxygen - hydrogen)
    positions = np.asarray(system.molecule.positions) * BOHR_IN_ANGSTROM
    assert bond == pytest.approx(np.linalg.norm(positions[0] - positions[1]), rel=1e-9)


def test_differences_and_kinetic_energy_densities_along_a_bond(prepared, molecule):
    from kineticnet_jax.reference import kohn_sham

    system = prepared("H2", level=2)
    exact = kn.OrbitalDensity.from_kohn_sham(kohn_sham(molecule("H2"), "blyp", "cc-pvdz"))
    density = kn.fit_sqrt_density(system, exact)
    left, right = Figure().subplots(1, 2)
    plot_density_difference(left, system, density, exact)
    assert left.get_ylabel() == "density - reference (bohr⁻³)"
    assert np.max(np.abs(left.lines[-1].get_ydata())) < 1e-4
    functionals = {name: kn.load_functional(name) for name in ("vw", "tf")}
    plot_kinetic_energy_density(right, system, functionals, density, exact)
    kohn_sham_tau, weizsaecker, fermi = (line.get_ydata() for line in right.lines[-3:])
    # For two electrons von Weizsäcker is exact at every point.
    np.testing.assert_allclose(weizsaecker, kohn_sham_tau, rtol=1e-2, atol=1e-5)
    n = np.asarray(density.at(system, points_along(system, right.lines[-1].get_xdata())))
    c_f = 0.3 * (3 * np.pi**2) ** (2 / 3)
    np.testing.assert_allclose(fermi, c_f * n ** (5 / 3), rtol=1e-6)


def points_along(system, x):
    """Points on the axis of a molecule along z."""
    middle = np.mean(np.asarray(system.molecule.positions), axis=0)
    return jnp.asarray(middle + x[:, None] / BOHR_IN_ANGSTROM * np.array([0, 0, 1]))


def test_difference_in_a_plane_has_its_sign(prepared):
    system = prepared("H2O", level=1)
    density = kn.initial_density(system)
    axes = Figure().subplots()
    plot_density_difference(axes, system, density, kn.initial_density(system, "hcore"))
    labels = {axes.get_xlabel(), axes.get_ylabel(), axes.figure.axes[1].get_ylabel()}
    expected = {"x in the plane (Å)", "y in the plane (Å)", "density - reference (bohr⁻³)"}
    assert labels == expected
    assert {text.get_text() for text in axes.texts} == {"O", "H"}


def test_dissociation_curves_and_their_differences():
    lengths = np.linspace(0.5, 2, 5)
    exact = -1 + (lengths - 0.8) ** 2
    above, below = plot_dissociation(lengths, {"mine": exact + 0.002}, exact).axes
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["Kohn–Sham", "mine"]
    np.testing.assert_allclose(below.lines[0].get_ydata(), 2.0)
    assert below.get_ylabel() == "difference (mHa)"
    assert below.get_xlabel() == "bond length (Å)"
