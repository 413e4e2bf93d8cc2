"""Density optimization against Kohn–Sham, exact cases and its own other method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError
from kineticnet_jax.forces import forces
from kineticnet_jax.optimize import node_share
from kineticnet_jax.reference import GUESSES, kohn_sham


@pytest.mark.parametrize(
    ("name", "basis", "xc"),
    [
        ("He", "cc-pvtz", "lda"),
        ("Li+", "cc-pvdz", "pbe"),
        ("H2", "cc-pvdz", "blyp"),
        ("stretched H2", "cc-pvtz", "pbe"),
        ("HeH+", "cc-pvtz", "blyp"),
        ("H3+", "cc-pvdz", "lda"),
    ],
)
def test_two_electrons_reproduce_kohn_sham(prepared, molecule, name, basis, xc):
    state = kohn_sham(molecule(name), xc, basis)
    system = prepared(name, basis)
    exact = kn.OrbitalDensity.from_kohn_sham(state).on_grid(system).n
    for guess in GUESSES:
        for method in ("lbfgs", "newton") if guess == "random" else ("lbfgs",):
            solution = kn.optimize_density(system, "vw", xc, guess, method=method)
            assert solution.converged, solution.reason
            assert abs(solution.energy - state.energy) < 2e-5
            n = solution.density.on_grid(system).n
            assert kn.integrate(system.grid.weights, jnp.abs(n - exact)) / 2 < 1e-4


@pytest.mark.parametrize("functional", ["tf+vw", "lkt"])
@pytest.mark.parametrize("name", ["Ne", "HF"])
def test_both_methods_converge_to_the_same_energy(prepared, name, functional):
    system = prepared(name)
    first = kn.optimize_density(system, functional, method="lbfgs")
    second = kn.optimize_density(system, functional, method="newton")
    for solution in (first, second):
        assert solution.converged, solution.reason
        assert solution.steps <= 100
        assert solution.gradient_norm < 1e-6
    assert first.energy == pytest.approx(second.energy, abs=1e-6)


@pytest.mark.parametrize("charge", [1, 2, 5, 10])
def test_two_independent_electrons_of_a_nucleus_have_kinetic_energy_z_squared(charge):
    symbol = {1: "H", 2: "He", 5: "B", 10: "Ne"}[charge]
    ion = kn.Molecule.from_string(f"1\n\n{symbol} 0 0 0", charge - 2)
    system = kn.prepare(ion, "sto-3g", "even-tempered", grid_level=4)
    solution = kn.optimize_density(system, "vw", "none", "hcore", hartree=False)
    assert solution.converged
    assert solution.components["kinetic"] == pytest.approx(charge**2, abs=1e-4)
    assert solution.energy == pytest.approx(-(charge**2), abs=1e-4)


def test_solution_is_stationary_and_complete(prepared):
    system = prepared("H2O", level=2)
    solution = kn.optimize_density(system, "tf+vw")
    energy = kn.total_energy(system, "tf+vw")
    assert solution.energy == pytest.approx(float(energy(solution.density)), abs=1e-10)
    assert sum(solution.components.values()) == pytest.approx(solution.energy, abs=1e-10)
    c = solution.density.coefficients
    assert c @ system.density_basis.overlap @ c == pytest.approx(10, rel=1e-12)
    assert len(solution.history.energy) == solution.steps + 1
    assert solution.history.gradient_norm[-1] == pytest.approx(solution.gradient_norm)
    assert "converged: gradient norm" in solution.reason
    rng = np.random.default_rng(0)
    basis = system.density_basis
    for _ in range(3):
        noise = basis.transform @ (rng.normal(size=len(c)) / (1 + basis.kinetic_eigenvalues))
        assert energy(kn.SqrtDensity(c + 1e-3 * noise)) > solution.energy


def test_lower_energy_than_the_variational_principle_allows_is_never_reported(prepared):
    # T_vW is a lower bound of T_s, so its minimum lies below Kohn–Sham, but above the floor.
    system = prepared("LiH", level=2)
    collapsed = kn.optimize_density(system, "vw")
    assert collapsed.converged
    assert collapsed.energy < kn.optimize_density(system, "tf+vw").energy


def test_an_unbounded_functional_ends_as_diverged(prepared):
    system = prepared("H2", level=2)

    def attraction(n, grad_n):
        return -50.0 * n ** (5 / 3)

    solution = kn.optimize_density(system, kn.SemiLocal("attraction", 0.0, attraction))
    assert not solution.converged
    assert "diverged" in solution.reason
    assert np.isfinite(solution.energy)


def test_running_out_of_steps_keeps_the_best_state(prepared):
    system = prepared("H2O", level=2)
    solution = kn.optimize_density(system, "tf+vw", max_steps=3)
    assert not solution.converged
    assert solution.reason.startswith("stopped after 3 steps")
    assert solution.energy == min(solution.history.energy)


def test_callback_sees_progress_and_changes_nothing(prepared):
    system = prepared("H2", level=2)
    seen = []
    solution = kn.optimize_density(system, "vw", guess="random", callback=seen.append)
    silent = kn.optimize_density(system, "vw", guess="random")
    assert solution.energy == silent.energy
    assert [progress.steps for progress in seen] == sorted({progress.steps for progress in seen})
    assert seen[-1].steps == solution.steps
    assert seen[-1].energy == solution.energy


def test_a_callback_ends_the_optimization(prepared):
    system = prepared("H2", level=2)
    seen = []

    def first(progress):
        seen.append(progress)
        return True

    solution = kn.optimize_density(system, "vw", guess="random", callback=first)
    assert [progress.steps for progress in seen] == [solution.steps]
    assert not solution.converged
    assert solution.reason.startswith(f"stopped after {solution.steps} steps as asked")
    assert solution.energy == min(solution.history.energy)


@pytest.mark.parametrize("method", ["lbfgs", "newton"])
def test_a_search_that_begins_on_a_coarse_grid_ends_at_the_same_density(prepared, molecule, method):
    system = prepared("H2O", level=2)
    coarse = kn.prepare(molecule("H2O"), grid_level=1, dtype="float32")
    plain = kn.optimize_density(system, "tf+vw", method=method)
    solution = kn.optimize_density(system, "tf+vw", method=method, coarse=coarse)
    assert solution.converged
    assert solution.energy == pytest.approx(plain.energy, abs=1e-9)
    n, expected = (one.density.on_grid(system).n for one in (solution, plain))
    assert system.grid.weights @ np.abs(n - expected) < 1e-4
    assert len(solution.history.energy) == solution.steps + 1
    # Most steps were made on the coarse grid.
    alone = kn.optimize_density(coarse, "tf+vw", method=method, tolerance=1e-3)
    np.testing.assert_allclose(
        solution.history.energy[: alone.steps + 1], alone.history.energy, atol=1e-5
    )
    assert solution.steps - alone.steps < plain.steps


def test_what_ends_on_a_coarse_grid_is_evaluated_on_the_fine_one(prepared, molecule):
    system = prepared("H2O", level=2)
    coarse = kn.prepare(molecule("H2O"), grid_level=0)
    energy = kn.total_energy(system, "tf+vw")
    for options, steps in (
        ({"max_steps": 4}, 4),
        ({"max_steps": 1}, 1),
        ({"callback": lambda progress: True}, 5),
    ):
        solution = kn.optimize_density(system, "tf+vw", coarse=coarse, **options)
        assert not solution.converged
        assert solution.steps == steps
        assert solution.energy == pytest.approx(float(energy(solution.density)), abs=1e-10)


def test_a_coarse_grid_where_the_functional_is_unbounded_does_no_harm(prepared, molecule):
    system = prepared("H2", level=2)
    coarse = kn.prepare(molecule("H2"), grid_level=0)
    deep = dataclasses.replace(
        coarse, external_potential=coarse.external_potential - 1e4 * (coarse.grid.points[:, 0] > 0)
    )
    solution = kn.optimize_density(system, "vw", coarse=deep)
    assert solution.converged
    assert solution.energy == pytest.approx(kn.optimize_density(system, "vw").energy, abs=1e-10)


def test_a_coarse_system_of_other_functions_is_refused(prepared):
    system = prepared("H2", level=2)
    for other in (prepared("stretched H2"), prepared("H2", "cc-pvtz", level=2)):
        with pytest.raises(InputError, match="coarse is not the same molecule"):
            kn.optimize_density(system, "vw", coarse=other)


def test_a_density_can_be_the_guess(prepared):
    system = prepared("H2", level=2)
    first = kn.optimize_density(system, "vw")
    again = kn.optimize_density(system, "vw", guess=first.density)
    assert again.steps <= 1
    assert again.energy == pytest.approx(first.energy, abs=1e-12)


def test_an_excited_state_is_left(prepared, molecule):
    state = kohn_sham(molecule("stretched H2"), "blyp", "cc-pvdz")
    system = prepared("stretched H2")
    half = len(system.density_basis.kinetic_eigenvalues) // 2
    antisymmetric = np.zeros(2 * half)
    antisymmetric[[0, half]] = 1, -1
    start = kn.SqrtDensity(jnp.asarray(antisymmetric))
    assert node_share(system, start) == pytest.approx(0.5, abs=1e-6)
    for options in ({}, {"method": "newton"}):
        solution = kn.optimize_density(system, "vw", guess=start, **options)
        assert solution.converged
        assert solution.reason.endswith("starting again from |ψ| as ψ had a node")
        assert abs(solution.energy - state.energy) < 2e-5
        assert node_share(system, solution.density) < 1e-9
        assert len(solution.history.energy) == solution.steps + 1
        assert np.all(np.isfinite(solution.history.energy))
    stopped = kn.optimize_density(system, "vw", guess=start, max_steps=solution.steps - 1)
    assert not stopped.converged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"functional": "wv"}, "unknown functional 'wv': did you mean 'vw'"),
        ({"guess": "minoa"}, "did you mean 'minao'"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
    ],
)
def test_bad_arguments_are_refused(prepared, arguments, message):
    with pytest.raises(InputError, match=message):
        kn.optimize_density(prepared("H2", level=2), **({"functional": "vw"} | arguments))


def test_a_second_geometry_compiles_nothing():
    compiled = []

    def count(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    def calculate(distance):
        molecule = kn.Molecule.from_string(f"2\n\nLi 0 0 0\nH 0 0 {distance}")
        system = kn.prepare(molecule, grid_level=0)
        solution = kn.optimize_density(system, "tf+vw", max_steps=3)
        return forces(system, "tf+vw", solution.density)

    calculate(1.5)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        calculate(1.6)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled
