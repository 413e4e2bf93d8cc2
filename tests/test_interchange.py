"""Files of other programs hold what they should and come back as they were."""

import ase.io
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from pyscf import scf
from pyscf.tools import molden

import kineticnet_jax as kn
from kineticnet_jax import interchange
from kineticnet_jax.errors import InputError
from kineticnet_jax.reference import build_mole


def test_cube_holds_the_density_at_its_voxels(prepared, tmp_path):
    system = prepared("HeH+", level=1)
    density = kn.initial_density(system)
    interchange.write_cube(tmp_path / "n.cube", system, density, spacing=0.5)
    molecule, voxels = interchange.read_cube(tmp_path / "n.cube", charge=1)
    np.testing.assert_allclose(molecule.positions, system.molecule.positions, atol=1e-6)
    assert molecule.formula == system.molecule.formula
    index = np.array([10, 12, 13])
    point = jnp.array([voxels.origin + index @ voxels.steps])
    expected = float(density.at(system, point)[0])
    assert voxels.values[tuple(index)] == pytest.approx(expected, rel=1e-4)
    assert voxels.at(system, point)[0] == pytest.approx(expected, rel=1e-4)


def test_voxels_may_be_skewed(prepared):
    system = prepared("H2", level=1)
    steps = np.array([[0.3, 0, 0], [0.06, 0.3, 0], [0, -0.06, 0.3]])
    origin = -steps.sum(axis=0) * 30
    index = np.stack(np.meshgrid(*3 * [np.arange(61)], indexing="ij"), axis=-1)
    center = np.array([0.2, -0.1, 0.3])
    values = np.exp(-0.5 * np.sum((origin + index @ steps - center) ** 2, axis=-1))
    sampled = interchange.VoxelDensity(origin, steps, values).on_grid(system)
    shift = np.asarray(system.grid.points) - center
    exact = np.exp(-0.5 * np.sum(shift**2, axis=1))
    near = np.linalg.norm(shift, axis=1) < 5
    np.testing.assert_allclose(sampled.n[near], exact[near], atol=3e-4)
    np.testing.assert_allclose(sampled.grad_n[near], -exact[near, None] * shift[near], atol=2e-3)
    assert np.all(np.asarray(sampled.n)[np.linalg.norm(shift, axis=1) > 40] == 0)


def test_a_cube_is_a_starting_guess(prepared, tmp_path):
    system = prepared("H2", level=2)
    solution = kn.optimize_density(system, "vw")
    interchange.write_cube(tmp_path / "n.cube", system, solution.density)
    _, voxels = interchange.read_cube(tmp_path / "n.cube")
    again = kn.optimize_density(system, "vw", guess=kn.fit_sqrt_density(system, voxels))
    assert again.history.energy[0] == pytest.approx(solution.energy, abs=5e-3)
    assert again.energy == pytest.approx(solution.energy, abs=1e-6)


def test_molden_holds_the_density_as_one_orbital(prepared, tmp_path):
    system = prepared("H2O", level=1)
    density = kn.initial_density(system)
    interchange.write_molden(tmp_path / "psi.molden", system, density)
    molecule, read = interchange.read_molden(tmp_path / "psi.molden")
    assert read.orbitals.shape[1] == 1
    np.testing.assert_allclose(molecule.positions, system.molecule.positions, atol=1e-12)
    expected, found = density.on_grid(system), read.on_grid(system)
    np.testing.assert_allclose(found.n, expected.n, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(found.grad_n, expected.grad_n, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF])
def test_densities_of_pyscf(prepared, method, tmp_path):
    system = prepared("HeH+", level=1)
    mol = build_mole(system.molecule, "cc-pvdz")
    mean_field = method(mol).run()
    n = np.asarray(kn.OrbitalDensity.from_pyscf(mol, mean_field.make_rdm1()).on_grid(system).n)
    functions = mol.eval_gto("GTOval", np.asarray(system.grid.points))
    total = np.asarray(mean_field.make_rdm1()).reshape(-1, mol.nao, mol.nao).sum(axis=0)
    expected = np.einsum("gm,mn,gn->g", functions, total, functions)
    np.testing.assert_allclose(n, expected, rtol=1e-9, atol=1e-14)
    molden.from_scf(mean_field, str(tmp_path / "scf.molden"))
    molecule, read = interchange.read_molden(tmp_path / "scf.molden", charge=1)
    assert molecule.n_electrons == 2
    np.testing.assert_allclose(read.on_grid(system).n, expected, rtol=1e-6, atol=1e-10)
    with pytest.raises(InputError, match="charge must leave an even"):
        interchange.read_molden(tmp_path / "scf.molden")


def test_cartesian_functions_are_refused(molecule, tmp_path):
    mol = build_mole(molecule("H2"), "cc-pvdz")
    mol.cart = True
    mol.build(False, False)
    mean_field = scf.RHF(mol).run()
    with pytest.raises(InputError, match="cart=False"):
        kn.OrbitalDensity.from_pyscf(mol, mean_field.make_rdm1())
    molden.from_scf(mean_field, str(tmp_path / "scf.molden"))
    with pytest.raises(InputError, match="Cartesian"):
        interchange.read_molden(tmp_path / "scf.molden")


def test_coefficients_come_back(prepared, tmp_path):
    system = prepared("H2", level=1)
    density = kn.initial_density(system, "random")
    interchange.save_density(tmp_path / "psi.npz", system, density)
    again = interchange.load_density(tmp_path / "psi.npz", system)
    np.testing.assert_array_equal(again.coefficients, density.normalized(system).coefficients)
    for other, message in (
        (prepared("HeH+", level=1), "other atoms"),
        (prepared("H2", "6-31g", level=1), "density basis cc-pvdz, but the system in 6-31g"),
    ):
        with pytest.raises(InputError, match=message):
            interchange.load_density(tmp_path / "psi.npz", other)


def test_frames_come_back_with_energies_and_forces(molecule, tmp_path):
    molecules = [molecule("H2"), molecule("HeH+"), molecule("H2O")]
    forces = [np.arange(3.0 * len(m)).reshape(-1, 3) for m in molecules]
    path = tmp_path / "frames.xyz"
    interchange.write_frames(path, molecules, [-1.0, -2.0, -3.0], forces)
    for found, expected in zip(interchange.read_frames(path), molecules, strict=True):
        np.testing.assert_array_equal(found.charges, expected.charges)
        np.testing.assert_allclose(found.positions, expected.positions, atol=1e-7)
        assert found.charge == expected.charge
    last = ase.io.read(path, "-1")
    assert last.get_potential_energy() == pytest.approx(-3 * units.Hartree)
    expected = forces[-1] * units.Hartree / units.Bohr
    np.testing.assert_allclose(last.get_forces(), expected, rtol=1e-6)
    with pytest.raises(InputError, match="3 molecules, but 1 energies"):
        interchange.write_frames(path, molecules, [-1.0])


READERS = [interchange.read_cube, interchange.read_frames, interchange.read_molden]


@pytest.mark.parametrize("read", READERS)
def test_bad_files(read, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing")
    (tmp_path / "bad").write_text("3\n\nthis is\nnothing at all\n")
    with pytest.raises(InputError, match=r"bad: (not|has no) "):
        read(tmp_path / "bad")


def test_bad_frames_are_named(tmp_path):
    (tmp_path / "two.xyz").write_text("1\n\nHe 0 0 0\n1\n\nH 0 0 0\n")
    with pytest.raises(InputError, match="frame 2: charge must leave an even"):
        interchange.read_frames(tmp_path / "two.xyz")


def test_a_file_that_holds_no_density(prepared, tmp_path):
    system = prepared("H2", level=1)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="not a density of save_density"):
        interchange.load_density(tmp_path / "other.npz", system)
    with pytest.raises(InputError, match="spacing must be positive"):
        interchange.write_cube(tmp_path / "n.cube", system, kn.initial_density(system), 0.0)
