"""Preparation: matrices, precision, defaults and refusals."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax import reference
from kineticnet_jax.errors import InputError
from kineticnet_jax.quadrature import integrate
from kineticnet_jax.system import cast


@pytest.mark.parametrize(("name", "basis"), [("H2", "cc-pvtz"), ("HF", "even-tempered")])
def test_transform_orthonormalises_and_diagonalises_the_kinetic_energy(prepared, name, basis):
    arrays = prepared(name, density_basis=basis).density_basis
    transform, kept = arrays.transform, arrays.kinetic_eigenvalues > 0
    overlap = transform.T @ arrays.overlap @ transform
    np.testing.assert_allclose(overlap, np.diag(kept.astype(float)), atol=1e-8)
    kinetic = transform.T @ arrays.kinetic @ transform
    np.testing.assert_allclose(kinetic, np.diag(arrays.kinetic_eigenvalues), atol=1e-6)


def test_analytic_matrices_are_integrals_on_the_grid(prepared):
    system = prepared("H2O", level=4, density_basis="reference")
    size = len(system.density_basis.overlap)
    samples = system.density_basis.on_grid.matrix.reshape(size, 4, -1)
    weights = system.grid.weights
    overlap = jnp.einsum("mg,ng,g->mn", samples[:, 0], samples[:, 0], weights)
    np.testing.assert_allclose(overlap, system.density_basis.overlap, atol=1e-5)
    kinetic = 0.5 * jnp.einsum("mxg,nxg,g->mn", samples[:, 1:], samples[:, 1:], weights)
    np.testing.assert_allclose(kinetic, system.density_basis.kinetic, rtol=1e-5, atol=1e-4)


def test_default_density_basis_depends_on_the_number_of_electrons(molecule):
    assert kn.prepare(molecule("He"), grid_level=0).density_basis.name == "cc-pvdz"
    assert kn.prepare(molecule("LiH"), grid_level=0).density_basis.name == "even-tempered"


@pytest.mark.parametrize(
    ("atoms", "basis", "largest"),
    [
        ("Li 0 0 0\nH 0 0 1.22", "even-tempered-1.8", 2.5e-3),
        # 1.1 % without f functions.
        ("H 0 0 0\nH 1 0 0\nH 0 1.6 0\nH 1 1.6 0", "even-tempered-f", 5e-3),
    ],
)
def test_even_tempered_bases_hold_short_distances(atoms, basis, largest):
    molecule = kn.Molecule.from_string(f"{len(atoms.splitlines())}\n\n{atoms}")
    ground_state = reference.kohn_sham(molecule, "blyp", "unc-cc-pvtz", 1)
    system = kn.prepare(molecule, "unc-cc-pvtz", basis, grid_level=1)
    exact = kn.OrbitalDensity.from_kohn_sham(ground_state)
    fitted = kn.fit_sqrt_density(system, exact)
    difference = jnp.abs(fitted.on_grid(system).n - exact.on_grid(system).n)
    assert float(integrate(system.grid.weights, difference)) / 4 < largest


def test_dropped_combinations_keep_the_shape(molecule):
    # Two hydrogen atoms this close are nearly dependent in an even-tempered basis.
    close = kn.Molecule.from_string("2\n\nH 0 0 0\nH 0 0 0.3")
    near = kn.prepare(close, density_basis="even-tempered", grid_level=0).density_basis
    far = kn.prepare(molecule("H2"), density_basis="even-tempered", grid_level=0).density_basis
    assert near.transform.shape == far.transform.shape
    dropped = np.asarray(near.kinetic_eigenvalues) == 0
    assert dropped.any()
    assert np.all(np.asarray(near.transform)[:, dropped] == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"basis": "cc-pvdx"}, "unknown basis 'cc-pvdx': did you mean 'cc-pvdz'?"),
        ({"density_basis": "even-tmpered"}, "did you mean 'even-tempered'?"),
        ({"density_basis": "even-tempered-2-g"}, "unknown basis 'even-tempered-2-g'"),
        ({"density_basis": "even-tempered-9"}, "ratio of an even-tempered basis must be 1.2 to 4"),
        ({"grid_level": 6}, "grid level must be 0 to 5"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ],
)
def test_bad_arguments_are_refused(molecule, arguments, message):
    with pytest.raises(InputError, match=message):
        kn.prepare(molecule("He"), **arguments)


def test_missing_element_and_core_potential_are_named():
    potassium = kn.Molecule.from_string("1\n\nK 0 0 0", charge=1)
    with pytest.raises(InputError, match="'cc-pvdz' has no functions for element K"):
        kn.prepare(potassium, "cc-pvdz")
    rubidium = kn.Molecule.from_string("1\n\nRb 0 0 0", charge=1)
    with pytest.raises(InputError, match="replaces the core of Rb"):
        kn.prepare(rubidium, "def2-svp")


def test_cast_rounds_what_is_on_the_grid_and_without_float64_all(prepared):
    system = prepared("H2")
    single = cast(system, np.float32)
    assert single.dtype == single.density_basis.on_grid.chunks.dtype == np.float32
    assert single.total_dtype == single.nuclear_repulsion.dtype == np.float64
    with jax.enable_x64(False):
        single = cast(system, np.float32)
    assert single.dtype == single.total_dtype == np.float32
    kinds = {leaf.dtype for leaf in jax.tree.leaves(single)}
    assert kinds <= {np.dtype(np.float32), np.dtype(np.int64)}


def test_without_float64_the_user_is_told(molecule):
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="float64 is off in JAX"):
            system = kn.prepare(molecule("H2"), grid_level=2)
        with pytest.raises(InputError, match="unknown dtype 'float64'"):
            kn.prepare(molecule("H2"), grid_level=2, dtype="float64")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kn.prepare(molecule("H2"), grid_level=2, dtype="float32")
        solution = kn.optimize_density(system, "vw")
        assert solution.converged
        assert solution.density.coefficients.dtype == jnp.float32
    exact = kn.optimize_density(kn.prepare(molecule("H2"), grid_level=2), "vw").energy
    assert solution.energy == pytest.approx(exact, abs=2e-5)


def test_a_float32_system_is_optimized_where_float64_is_on(molecule):
    expected = kn.optimize_density(kn.prepare(molecule("H2"), grid_level=1), "tf+vw")
    solution = kn.optimize_density(
        kn.prepare(molecule("H2"), grid_level=1, dtype="float32"), "tf+vw"
    )
    assert solution.converged
    assert solution.density.coefficients.dtype == jnp.float64
    assert solution.energy == pytest.approx(expected.energy, abs=1e-5)


def test_importing_the_package_switches_nothing(tmp_path):
    import subprocess
    import sys

    code = (
        "import jax, sys; import kineticnet_jax; "
        "assert not jax.config.jax_enable_x64; "
        "assert jax.config.jax_compilation_cache_dir is None; "
        "assert not {'pyscf', 'matplotlib.pyplot'} & set(sys.modules), 'imported too early'"
    )
    environment = {"PATH": "", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
