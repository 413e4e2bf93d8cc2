"""Least squares: against dense solutions, on data, and through the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import write_dataset

import kineticnet_jax as kn
from kineticnet_jax import cli
from kineticnet_jax.curvature import CutSettings, curvature_cuts, energy_hessian
from kineticnet_jax.data import DataConfig, Family
from kineticnet_jax.data.config import Limits, SplitFractions
from kineticnet_jax.errors import InputError
from kineticnet_jax.evaluate import sample_errors
from kineticnet_jax.fit import (
    FitSettings,
    fit_moments,
    second_derivatives,
)
from kineticnet_jax.functionals.moments import MomentConfig, moment_features
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.normal_equations import NormalEquations

CONFIG = DataConfig(
    "hydrogen",
    (Family("H2", "H\nH 1 r", 12, {"r": (0.6, 1.2)}),),
    potentials_per_geometry=5,
    grid_level=1,
    splits=SplitFractions(0.5, 0.25, 0.25),
    limits=Limits(kinetic=2e-3),
)
MOMENTS = MomentConfig((1,), "total", Filters((6, 4, 3), 0.05, 30.0, cutoff=9.0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return kn.Dataset(write_dataset(CONFIG, tmp_path_factory.mktemp("fit") / "hydrogen.h5"))


@pytest.fixture(scope="module")
def fitted(dataset):
    return fit_moments(dataset, MOMENTS)


@pytest.fixture(scope="module")
def energies_only(dataset):
    return fit_moments(dataset, MOMENTS, FitSettings(potentials=False))


def test_normal_equations_are_ridge_regression():
    generator = np.random.default_rng(0)
    rows, targets = generator.normal(size=(50, 6)), generator.normal(size=50)
    rows[:, 0] = 3.0
    weights = np.where(np.arange(50) < 20, 1.0, 0.3)
    equations = NormalEquations.empty(6)
    equations.add(rows[:20], targets[:20])
    equations.add(rows[20:], targets[20:], 0.3)
    total = weights.sum()
    scale = np.sqrt(weights @ rows**2 / total)
    penalty = 0.07 * total * np.diag(np.where(np.arange(6) < 1, 0, scale**2))
    exact = np.linalg.solve(
        rows.T @ (weights[:, None] * rows) + penalty, rows.T @ (weights * targets)
    )
    (solution,) = equations.solve([0.07], free=1)
    np.testing.assert_allclose(solution, exact, rtol=1e-10)
    square = weights @ (rows @ exact - targets) ** 2 / total
    assert equations.mean_square(exact) == pytest.approx(square, rel=1e-10)
    with pytest.raises(InputError, match="not finite"):
        equations.add(np.full((1, 6), np.nan), np.zeros(1))


def test_second_derivatives_are_rows_as_well(dataset, fitted):
    """A curvature demanded along a path is met when its row has a large weight."""
    geometry, numbers = next(dataset.select("train").by_geometry())
    space = dataset.space(geometry)
    density, _ = dataset.density(geometry, numbers[0])
    molecule = kn.Molecule(np.asarray(space.charges), np.asarray(space.positions))
    wave = jnp.sin(2 * space.grid.points[:, 2])

    def path(step):
        psi = jnp.sqrt(density.n) * (1 + step * wave)
        return kn.GridDensity(psi**2, density.grad_n)

    def curvature(functional, step=1e-3):
        ends = [functional(molecule, space.grid, path(x)) for x in (-step, 0.0, step)]
        return float(ends[0] - 2 * ends[1] + ends[2]) / step**2

    row = np.asarray(second_derivatives(MOMENTS, molecule, space.grid, path))
    present = float(row @ fitted.functional.coefficients)
    assert present == pytest.approx(curvature(fitted.functional), rel=1e-4)
    target = np.array([present + 0.5])
    changed = fitted.with_rows(row[None], target, weight=1e6)
    assert curvature(changed.functional) == pytest.approx(present + 0.5, rel=1e-3)
    with pytest.raises(InputError, match="rows must be derivatives"):
        fitted.with_rows(row[None] + 1, target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_weight": -1.0}, "kernel_weight must be zero or a positive number, but is -1"),
        ({"slack": float("nan")}, "slack must be zero or a positive number, but is nan"),
        ({"directions": 0}, "directions must be at least 1, but are 0"),
        ({"regularizations": ()}, "regularizations must be positive numbers"),
    ],
)
def test_nonsense_is_one_line(dataset, settings, message):
    with pytest.raises(InputError, match=message):
        fit_moments(dataset, MOMENTS, FitSettings(**settings))


def test_second_derivatives_are_pulled_to_zero(dataset, fitted):
    """And a larger ridge is taken if the settings allow for it."""
    calm = fit_moments(dataset, MOMENTS, FitSettings(kernel_weight=100.0, slack=1e3))
    assert calm.regularization > fitted.regularization
    geometry, numbers = next(dataset.select("test").by_geometry())
    space = dataset.space(geometry)
    density, _ = dataset.density(geometry, numbers[0])
    molecule = kn.Molecule(np.asarray(space.charges), np.asarray(space.positions))
    rows = []
    for k in range(1, 4):
        wave = density.n * jnp.sin(k * space.grid.points[:, 2])

        def path(step, wave=wave):
            return kn.GridDensity(density.n + step * wave, density.grad_n)

        rows.append(np.asarray(second_derivatives(MOMENTS, molecule, space.grid, path)))
    before, after = (np.array(rows) @ fit.functional.coefficients for fit in (fitted, calm))
    assert np.sum(after**2) < 0.1 * np.sum(before**2)


def test_low_curvatures_are_raised(fitted, prepared):
    system = prepared("H2", level=1)
    density = kn.optimize_density(system, "vw").density
    before = float(np.linalg.eigvalsh(energy_hessian(fitted_energy(system, fitted), density))[0])
    settings = CutSettings(floor=before + 0.02, goal=before + 0.1, weight=1e3)
    cut, lowest = curvature_cuts(fitted, [(system, density)], settings=settings)
    after = float(np.linalg.eigvalsh(energy_hessian(fitted_energy(system, cut), density))[0])
    assert lowest[0] == pytest.approx([before], abs=1e-8)
    assert lowest[-1] == pytest.approx([after], abs=1e-8)
    assert after > settings.floor


def fitted_energy(system, fit):
    return kn.total_energy(system, fit.functional)


def test_fit_predicts_unseen_geometries(dataset, fitted):
    errors = sample_errors(fitted.functional, dataset.select("test"))
    assert len(errors.energy) == len(dataset.select("test"))
    spread = np.std(dataset.select("test").kinetic_energies)
    assert np.mean(np.abs(errors.energy)) < 0.05 * spread
    simple = sample_errors(kn.load_functional("tf"), dataset.select("test"))
    assert np.mean(errors.potential) < 0.1 * np.mean(simple.potential)
    assert fitted.regularization in FitSettings().regularizations


def test_rows_are_derivatives_of_the_energy(dataset, fitted):
    """The normal equations and the evaluation by gradients measure the same potential error."""
    validation = sample_errors(fitted.functional, dataset.select("validation"))
    score = np.sum(validation.energy**2) + np.sum(validation.potential)
    record = dataset.record(dataset.select("validation").geometries[0])
    functions = len(record.potential_gradient[0])
    mean = score / (len(validation.energy) * (1 + functions))
    assert float(fitted.validation.min()) == pytest.approx(mean, rel=1e-6)


def test_von_weizsaecker_is_exact_for_two_electrons(dataset):
    errors = sample_errors(kn.load_functional("vw"), dataset.select("test"))
    assert np.max(np.abs(errors.energy)) < 2e-3
    assert np.max(errors.potential) < 1e-5


def test_fewer_directions_of_the_potential_are_better_than_none(dataset, energies_only):
    few = fit_moments(dataset, MOMENTS, FitSettings(directions=8))
    with_potentials, without = (
        sample_errors(fit.functional, dataset.select("test")) for fit in (few, energies_only)
    )
    # A mean would be that of one or two of the 18 samples.
    assert np.median(with_potentials.potential) < 0.5 * np.median(without.potential)


def test_energies_only_fit_the_energies(dataset, energies_only):
    errors = sample_errors(energies_only.functional, dataset.select("train"))
    assert np.mean(np.abs(errors.energy)) < 1e-3


def test_coefficients_belong_to_unshifted_features(dataset, fitted):
    geometry, numbers = next(dataset.select("train").by_geometry())
    space = dataset.space(geometry)
    density, _ = dataset.density(geometry, numbers[0])
    molecule = kn.Molecule(np.asarray(space.charges), np.asarray(space.positions))
    with jax.enable_x64(True):
        features = moment_features(MOMENTS, molecule, space.grid, density)
        direct = float(np.asarray(features) @ fitted.functional.coefficients)
        energy = float(fitted.functional(molecule, space.grid, density))
    assert direct == pytest.approx(energy, rel=1e-10)


def test_missing_splits_and_elements_are_one_line(dataset):
    with pytest.raises(InputError, match="has no validation samples, a fit needs both"):
        fit_moments(dataset.select("train"))
    with pytest.raises(InputError, match="never seen H, it knows He"):
        fit_moments(dataset, MomentConfig((2,)))


def run(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    return exit_info.value.code


def test_command_line(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    out, written = tmp_path / "functional", tmp_path / "fit.json"
    options = ["--target", "total", "--directions", 4, "--json", written]
    assert run("fit", dataset.path, "--out", out, *options) == cli.DONE
    shown = capsys.readouterr().out
    for word in ("T_s MAE", "potential", "H2", "regularisation", "written to"):
        assert word in shown
    content = json.loads(written.read_text())
    assert content["test"]["H2"]["samples"] == len(dataset.select("test"))
    assert run("info", out, "--json", tmp_path / "info.json") == cli.DONE
    shown = capsys.readouterr().out
    for word in ("moments-hydrogen", "elements: H", "parameters", "training samples", "MAE"):
        assert word in shown
    content = json.loads((tmp_path / "info.json").read_text())
    assert content["target"] == "total"
    geometry = tmp_path / "water.xyz"
    geometry.write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    assert run("optimize", geometry, "--functional", out) == cli.BAD_INPUT
    assert "never seen O, it knows H" in capsys.readouterr().err
    assert run("fit", dataset.path, "--out", tmp_path / "none" / "f") == cli.BAD_INPUT
    assert "does not exist" in capsys.readouterr().err
    assert run("fit", dataset.path, "--out", out, "--directions", 0) == cli.BAD_INPUT
    assert "directions must be at least 1" in capsys.readouterr().err


def test_interrupted_test_leaves_the_functional(dataset, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("kineticnet_jax.evaluate.sample_errors", interrupt)
    out = tmp_path / "functional"
    code = run("fit", dataset.path, "--out", out, "--target", "total", "--energies-only")
    assert code == cli.NOT_CONVERGED
    assert f"interrupted; the functional is in {out}" in capsys.readouterr().err
    assert kn.load_functional(out).target == "total"
