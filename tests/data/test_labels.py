"""Exact labels: the jitted path against PySCF, their derivatives, and known limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from pyscf import dft, gto

from kineticnet_jax import reference
from kineticnet_jax.basis import coulomb_potential
from kineticnet_jax.data.config import MANY_WEAK, DataConfig, Family, PotentialKind
from kineticnet_jax.data.generate import generate_geometry, one_electron_space
from kineticnet_jax.data.geometries import draw_geometries
from kineticnet_jax.data.labels import ground_state_labels, kohn_sham_potential, orbital_form
from kineticnet_jax.data.potentials import (
    Perturbation,
    draw_perturbation,
    local_potential,
    random_matrix,
)
from kineticnet_jax.data.spaces import residual_energy, sample_orbitals

XC = {"lda": "slater,vwn5", "blyp": "b88,lyp"}


class Problem:
    """A molecule with its Kohn-Sham potential, for the jitted path and for PySCF."""

    def __init__(self, molecule, basis, level, density_basis, xc="blyp", density_fit=False):
        self.molecule, self.level, self.xc = molecule, level, xc
        self.ground = reference.kohn_sham(molecule, xc, basis, level, density_fit=density_fit)
        self.space = one_electron_space(molecule, basis, density_basis, level)
        auxiliary = reference.build_mole(molecule, reference.AUXILIARY)
        root = reference.inverse_coulomb_root(auxiliary)
        operator = root @ coulomb_potential(
            reference.extract_basis(auxiliary), self.space.positions, self.space.grid.points
        )
        occupied = jnp.asarray(self.ground.orbitals[:, : self.space.occupied])
        n, _, _ = jax.jit(sample_orbitals)(self.space, occupied)
        self.hartree = (operator @ (self.space.grid.weights * n)) @ operator
        self.potential = jax.jit(kohn_sham_potential, static_argnames="xc")(
            self.space,
            xc,
            occupied,
            self.hartree,
            jnp.asarray(self.ground.hartree_matrix),
            jnp.asarray(self.ground.xc_matrix),
        )
        self.mol = gto.M(
            atom=list(zip(molecule.symbols, molecule.positions, strict=True)),
            unit="B",
            basis=basis,
            charge=molecule.charge,
        )

    def labels(self, perturbation):
        return jax.jit(ground_state_labels)(self.space, self.potential, perturbation)

    def pyscf(self, perturbation):
        """Orbital energies, T_s, n and τ from PySCF's integrals, functions and functional."""
        mol, weights = self.mol, np.asarray(self.space.grid.weights)
        field = dft.RKS(mol, xc=XC[self.xc])
        field.grids.coords = np.asarray(self.space.grid.points)
        field.grids.weights = weights
        potential = mol.intor("int1e_nuc") + field.get_veff(mol, self.ground.density_matrix)
        values = mol.eval_gto("GTOval_sph_deriv1", field.grids.coords)
        charges = np.asarray(perturbation.charge_change)
        smooth = dataclasses.replace(
            perturbation, charge_change=jnp.zeros_like(perturbation.charge_change)
        )
        local = np.asarray(local_potential(smooth, self.molecule.positions, field.grids.coords))
        potential += (values[0].T * (weights * local)) @ values[0]
        for atom, change in enumerate(charges):
            with mol.with_rinv_at_nucleus(atom):
                potential -= change * mol.intor("int1e_rinv")
        overlap, kinetic = mol.intor("int1e_ovlp"), mol.intor("int1e_kin")
        if perturbation.matrix_strength > 0:
            back = overlap @ np.asarray(self.space.orbitals.transform)
            potential += back @ np.asarray(random_matrix(perturbation, mol.nao)) @ back.T
        energies, orbitals = scipy.linalg.eigh(kinetic + potential, overlap)
        occupied = orbitals[:, : self.space.occupied]
        samples = np.einsum("xgm,mi->xgi", values, occupied)
        n = 2 * (samples[0] ** 2).sum(axis=1)
        tau = (samples[1:] ** 2).sum(axis=(0, 2))
        return energies, 2 * np.trace(occupied.T @ kinetic @ occupied), n, tau


@pytest.fixture(scope="module")
def water(request):
    from conftest import make_molecule

    return Problem(make_molecule("H2O"), "cc-pvdz", 2, "even-tempered")


@pytest.fixture(scope="module")
def hydrogen(request):
    from conftest import make_molecule

    return Problem(make_molecule("H2"), "cc-pvdz", 2, "cc-pvdz", "lda")


def draw(problem, mixture, seed):
    space = problem.space
    return draw_perturbation(jax.random.key(seed), mixture, space.charges, space.positions)


@pytest.mark.parametrize(
    "mixture",
    [
        MANY_WEAK[:1],
        MANY_WEAK[1:],
        (PotentialKind("field and dipole", field=0.01, dipole=0.5),),
        (PotentialKind("charges", charge_change=0.05),),
        (PotentialKind("matrix", matrix=0.02),),
    ],
    ids=lambda mixture: mixture[0].name,
)
@pytest.mark.parametrize("name", ["water", "hydrogen"])
def test_one_shot_labels_equal_the_pyscf_path(name, mixture, request):
    problem = request.getfixturevalue(name)
    perturbation = draw(problem, mixture, 3)
    labels = problem.labels(perturbation)
    energies, kinetic, n, tau = problem.pyscf(perturbation)
    assert float(labels.kinetic_energy) == pytest.approx(kinetic, abs=1e-8)
    np.testing.assert_allclose(labels.orbital_energies, energies, atol=1e-8)
    np.testing.assert_allclose(labels.n, n, atol=1e-8 * n.max())
    np.testing.assert_allclose(labels.tau, tau, atol=1e-8 * tau.max())
    assert float(labels.orbital_residual) < 1e-9


def test_ground_state_is_that_of_pyscf(water):
    labels = water.labels(Perturbation.none(3, 1))
    assert float(labels.kinetic_energy) == pytest.approx(
        water.ground.components["kinetic"], abs=1e-5
    )
    assert float(labels.gap) == pytest.approx(
        water.ground.orbital_energies[5] - water.ground.orbital_energies[4], abs=1e-5
    )
    assert abs(float(labels.kinetic_error)) < 5e-4
    assert abs(float(labels.electron_error)) < 1e-4


def test_density_fit_has_the_coulomb_potential_of_the_grid(molecule):
    def deviation(density_fit):
        problem = Problem(molecule("H2O"), "cc-pvdz", 3, "cc-pvdz", density_fit=density_fit)
        values = problem.mol.eval_gto("GTOval_sph", np.asarray(problem.space.grid.points))
        weighted = np.asarray(problem.space.grid.weights * problem.hartree)
        return np.abs((values.T * weighted) @ values - problem.ground.hartree_matrix).max()

    assert deviation(density_fit=True) < 5e-6 < deviation(density_fit=False)


def test_labels_work_under_vmap(hydrogen):
    batch = jax.vmap(lambda seed: draw(hydrogen, MANY_WEAK, seed))(jnp.arange(3))
    many = jax.jit(jax.vmap(ground_state_labels, in_axes=(None, None, 0)))(
        hydrogen.space, hydrogen.potential, batch
    )
    for i in range(3):
        single = hydrogen.labels(jax.tree.map(lambda leaf, i=i: leaf[i], batch))
        # Orbitals of one energy may be turned among themselves.
        for name in ("kinetic_energy", "orbital_energies", "n", "tau", "potential_gradient"):
            np.testing.assert_allclose(getattr(many, name)[i], getattr(single, name), atol=1e-8)


@pytest.mark.parametrize("name", ["water", "hydrogen"])
def test_potential_label_is_the_derivative_of_the_kinetic_energy(name, request):
    """dT_s = ∫ (μ - v) dn between ground states of neighbouring potentials, second order."""
    problem = request.getfixturevalue(name)
    base = draw(problem, MANY_WEAK, 5)
    weights = problem.space.grid.weights

    def moved(step):
        return problem.labels(dataclasses.replace(base, field=jnp.array([0, step, 0.7 * step])))

    step = 1e-3
    forward, backward, centre = moved(step), moved(-step), moved(0.0)
    change = forward.kinetic_energy - backward.kinetic_energy
    v = problem.potential
    local = v.external + v.hartree + v.xc
    local += local_potential(base, problem.space.positions, problem.space.grid.points)
    dn, dgrad = forward.n - backward.n, forward.grad_n - backward.grad_n
    predicted = -jnp.sum(weights * (local * dn + jnp.sum(v.xc_gradient * dgrad, axis=1)))
    # μ multiplies the change of N on the grid, which is zero to quadrature error.
    assert float(change) == pytest.approx(float(predicted), abs=2e-6)
    assert abs(float(change)) > 1e-5
    # The same along √n: dn = 2√n dψ.
    dx = forward.sqrt_coefficients - backward.sqrt_coefficients
    tolerance = {"hydrogen": 1e-3, "water": 0.05}[name]
    assert float(jnp.vdot(centre.potential_gradient, dx)) == pytest.approx(
        float(change), rel=tolerance, abs=1e-6
    )


def test_von_weizsaecker_is_exact_for_two_electrons(hydrogen):
    """T_s = Σ t x² and dT_s/dx = 2 t x, projected, for n = ψ² of one orbital."""
    labels = hydrogen.labels(draw(hydrogen, MANY_WEAK, 1))
    x, t = labels.sqrt_coefficients, hydrogen.space.density.kinetic_eigenvalues
    assert float(jnp.sum(t * x**2)) == pytest.approx(float(labels.kinetic_energy), abs=1e-5)
    exact = 2 * (t * x - x * jnp.sum(t * x**2) / 2)
    error = residual_energy(exact - labels.potential_gradient, t)
    assert float(error) < 1e-7
    # Thomas-Fermi's derivative is nowhere near, so the comparison means something.
    wrong = residual_energy(labels.potential_gradient, t)
    assert float(wrong) > 1e-3


def test_orbital_form_is_minus_the_potential(water):
    perturbation = draw(water, MANY_WEAK, 2)
    labels = water.labels(perturbation)
    between = jax.jit(orbital_form)(water.space, labels)
    v = water.potential
    local = v.external + v.hartree + v.xc
    local += local_potential(perturbation, water.space.positions, water.space.grid.points)
    values = water.mol.eval_gto("GTOval_sph_deriv1", np.asarray(water.space.grid.points))
    phi = np.einsum("xgm,mi->xgi", values, labels.orbitals)
    weighted = np.asarray(water.space.grid.weights)[:, None] * phi[0]
    product = np.einsum("ga,gi->ai", weighted * np.asarray(local)[:, None], phi[0])
    for axis in range(3):
        vector = np.asarray(water.space.grid.weights * v.xc_gradient[:, axis])[:, None]
        product += np.einsum("ga,gi->ai", vector * phi[0], phi[axis + 1])
        product += np.einsum("ga,gi->ai", vector * phi[axis + 1], phi[0])
    assert np.abs(between + product[5:, :5]).max() < 2e-3


def test_residual_energy_is_the_gain_of_an_exact_line_search():
    """For E = Σ (t + κ) x² + g·x the minimum lies ¼ Σ g² / (t + κ) below x = 0."""
    t, g = jnp.array([0.1, 2.0, 50.0]), jnp.array([0.3, -0.2, 4.0])
    x = -g / (2 * (t + 1))
    gain = -(jnp.sum((t + 1) * x**2) + g @ x)
    assert float(residual_energy(g, t)) == pytest.approx(float(gain), rel=1e-12)


WATER = Family("H2O", "O\nH 1 r\nH 1 r 2 104.5", 1, {"r": (0.95, 0.97)})


def test_self_consistent_mode_solves_the_kohn_sham_equations():
    config = DataConfig(
        "scf",
        (WATER,),
        potentials_per_geometry=2,
        mode="self-consistent",
        grid_level=1,
        density_basis="even-tempered-1.8",
        potentials=(
            PotentialKind("field", field=0.02),
            PotentialKind("charges", charge_change=0.02),
        ),
    )
    record = generate_geometry(config, draw_geometries(config)[0])
    assert len(record) == 3
    assert record.reference_orbitals.shape[0] == 3
    for i in range(3):
        # The density that makes v_KS is the density of the sample.
        np.testing.assert_allclose(
            np.abs(record.orbitals[i][:, :5]), np.abs(record.reference_orbitals[i]), atol=1e-4
        )
    mol = gto.M(
        atom=list(zip(["O", "H", "H"], record.positions, strict=True)), unit="B", basis="cc-pvdz"
    )
    i = int(np.flatnonzero(np.abs(record.perturbation.field).max(axis=1) > 0)[0])
    field = dft.RKS(mol, xc="b88,lyp")
    core = field.get_hcore() + np.einsum(
        "x,xmn->mn", record.perturbation.field[i], mol.intor("int1e_r")
    )
    field.get_hcore = lambda *_: core
    field.grids.level = 3
    field.kernel()
    kinetic = np.vdot(mol.intor("int1e_kin"), field.make_rdm1())
    assert record.kinetic_energy[i] == pytest.approx(kinetic, abs=3e-3)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("orbital-residual", {"orbital_residual": 0.0}),
        ("gap", {"gap": 10.0}),
        ("kinetic", {"kinetic": 1e-12}),
        ("electrons", {"electrons": 1e-16}),
        ("sqrt-fit", {"sqrt_fit": 1e-14}),
    ],
)
def test_samples_are_rejected_with_their_reason(reason, change):
    config = DataConfig("x", (Family("Li+", "Li", 1, charge=1),), potentials_per_geometry=1)
    config = dataclasses.replace(config, limits=dataclasses.replace(config.limits, **change))
    record = generate_geometry(config, draw_geometries(config)[0])
    assert len(record) == 0
    assert record.rejected == {reason: 2}


def test_a_potential_in_which_kohn_sham_does_not_converge_is_rejected(monkeypatch):
    from kineticnet_jax.data import generate
    from kineticnet_jax.errors import ConvergenceError

    solve = reference.kohn_sham

    def only_unperturbed(*arguments, perturbation=None, **options):
        if perturbation is not None:
            raise ConvergenceError("no")
        return solve(*arguments, **options)

    monkeypatch.setattr(generate.reference, "kohn_sham", only_unperturbed)
    config = DataConfig(
        "x",
        (Family("He", "He", 1),),
        potentials_per_geometry=2,
        grid_level=1,
        mode="self-consistent",
    )
    record = generate_geometry(config, draw_geometries(config)[0])
    assert len(record) == 1
    assert record.rejected == {"not-converged": 2}
