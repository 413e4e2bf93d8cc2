"""Figures show what they say, and cube files are complete."""

import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.report import plot_solution, write_cube
from kineticnet_jax.units import BOHR_IN_ANGSTROM


def test_density_along_a_bond_is_symmetric_and_labelled(prepared, molecule):
    from kineticnet_jax.reference import kohn_sham

    system = prepared("H2", level=2)
    solution = kn.optimize_density(system, "vw")
    exact = kn.OrbitalDensity.from_kohn_sham(kohn_sham(molecule("H2"), "blyp", "cc-pvdz"))
    left, right = plot_solution(system, solution, exact).axes
    assert left.get_xlabel() == "position along the axis (Å)"
    assert left.get_ylabel() == "density (bohr⁻³)"
    reference, own = (line.get_ydata() for line in left.lines[:2])
    np.testing.assert_allclose(own, own[::-1], rtol=1e-5)
    np.testing.assert_allclose(own, reference, rtol=1e-3)
    nuclei = [line.get_xdata()[0] for line in left.lines[2:]]
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


def test_cube_holds_the_density_at_its_voxels(prepared, tmp_path):
    system = prepared("HeH+", level=1)
    density = kn.initial_density(system)
    write_cube(tmp_path / "n.cube", system, density, spacing=0.5)
    lines = (tmp_path / "n.cube").read_text().splitlines()
    origin = np.array(lines[2].split()[1:], dtype=float)
    shape = [int(line.split()[0]) for line in lines[3:6]]
    n = np.array(" ".join(lines[8:]).split(), dtype=float).reshape(shape)
    index = np.array([10, 12, 13])
    import jax.numpy as jnp

    expected = density.at(system, jnp.array([origin + 0.5 * index]))[0]
    assert n[tuple(index)] == pytest.approx(float(expected), rel=1e-4)
