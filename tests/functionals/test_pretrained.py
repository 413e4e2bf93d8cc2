"""Pretrained functionals on molecules that are in no data set."""

import shutil

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import kineticnet_jax as kn
from kineticnet_jax import reference
from kineticnet_jax.cli import main
from kineticnet_jax.errors import InputError
from kineticnet_jax.functionals.registry import PRETRAINED
from kineticnet_jax.functionals.storage import ARRAYS, DESCRIPTION
from kineticnet_jax.nn.moments import MomentNetConfig
from kineticnet_jax.units import CHEMICAL_ACCURACY_IN_MILLIHARTREE

NAME = "two-electron"

MOLECULES = {
    "He": ("He 0.3 -0.1 0.2", 0),
    "Li+": ("Li 0 0 0", 1),
    "H2": ("H 0.1 0.2 0.3\nH 0.6 0.9 0.2", 0),
    "HeH+": ("He 0 0 0\nH 0.3 0.7 0.45", 1),
    "H3+": ("H 0 0 0\nH 0.93 0.1 0\nH 0.35 0.88 0.2", 1),
}
"""Away from the axes, and at bond lengths of no configuration."""


@pytest.fixture(scope="module")
def functional():
    return kn.load_functional(NAME)


def molecule(name):
    atoms, charge = MOLECULES[name]
    return kn.Molecule.from_string(f"{len(atoms.splitlines())}\n\n{atoms}\n", charge)


@pytest.mark.parametrize(
    ("name", "level"), [("He", 3), ("Li+", 1), ("Li+", 3), ("H2", 3), ("HeH+", 1), ("H3+", 1)]
)
def test_kinetic_energy_at_the_exact_density_is_chemically_accurate(functional, name, level):
    one = molecule(name)
    exact = kn.OrbitalDensity.from_kohn_sham(reference.kohn_sham(one, "blyp", "cc-pvdz"))
    system = kn.prepare(one, "cc-pvdz", grid_level=level)
    # Von Weizsäcker is exact.
    expected = kn.kinetic_energy(kn.load_functional("vw"), system, exact)
    error = 1e3 * (kn.kinetic_energy(functional, system, exact) - expected)
    assert abs(float(error)) < CHEMICAL_ACCURACY_IN_MILLIHARTREE


def test_optimized_density_is_that_of_kohn_sham(functional):
    one = molecule("H2")
    system = kn.prepare(one, "cc-pvdz")
    exact = reference.kohn_sham(one, "blyp", "cc-pvdz")
    energies = []
    for guess in ("sad", "random"):
        solution = kn.optimize_density(system, functional, "blyp", guess)
        assert solution.converged
        energies.append(1e3 * (solution.energy - exact.energy))
    assert np.max(np.abs(energies)) < CHEMICAL_ACCURACY_IN_MILLIHARTREE
    assert np.ptp(energies) < 0.05
    n = kn.OrbitalDensity.from_kohn_sham(exact).on_grid(system).n
    change = solution.density.on_grid(system).n - n
    assert kn.integrate(system.grid.weights, jnp.abs(change)) / 2 < 0.005


@pytest.mark.parametrize(
    ("name", "atoms", "density_basis"),
    [
        ("four-electron", "Li 0.1 0 0\nH 0.9 1.1 0.7", "even-tempered-1.8-f"),
        ("ten-electron", "F 0.1 0 0\nH 0.6 0.7 0.42", "even-tempered-1.8"),
    ],
)
def test_density_of_more_electrons_is_that_of_kohn_sham(name, atoms, density_basis):
    one = kn.Molecule.from_string(f"2\n\n{atoms}\n")
    basis = "even-tempered-2.2"
    system = kn.prepare(one, basis, density_basis, grid_level=2)
    exact = reference.kohn_sham(one, "blyp", basis, grid_level=2)
    solution = kn.optimize_density(system, name, "blyp")
    assert solution.converged
    error = 1e3 * (solution.energy - exact.energy)
    assert abs(error) < CHEMICAL_ACCURACY_IN_MILLIHARTREE
    n = kn.OrbitalDensity.from_kohn_sham(exact).on_grid(system).n
    change = solution.density.on_grid(system).n - n
    assert kn.integrate(system.grid.weights, jnp.abs(change)) / system.n_electrons < 0.01


def test_gradient_is_that_of_finite_differences(functional):
    system = kn.prepare(molecule("H2"), "cc-pvdz", grid_level=1)
    energy, density = kn.total_energy(system, functional), kn.initial_density(system, "hcore")
    c = density.coefficients
    direction = np.random.default_rng(0).normal(size=c.shape)
    along = jax.jit(lambda t: energy(kn.SqrtDensity(c + t * direction)))
    h = 1e-4
    expected = float(along(h) - along(-h)) / (2 * h)
    assert jax.grad(along)(0.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "target", "families", "size"),
    [
        (NAME, "total", MOLECULES, 1_000_000),
        ("four-electron", "pauli", ("Be", "LiH", "He2", "H4"), 1_000_000),
        ("ten-electron", "pauli", ("Ne", "HF", "H2O", "NH3", "CH4"), 2_000_000),
    ],
)
def test_a_card_and_everything_to_make_it_again_come_with_it(name, target, families, size):
    functional = kn.load_functional(name)
    card = (PRETRAINED[name] / "README.md").read_text(encoding="utf-8")
    for word in ("Domain of validity", "commit", "seed", "Errors on unseen", *families):
        assert word in card
    details = dict(functional.provenance.details)
    assert {"xc", "basis", "families", "data", "training", "steps"} <= set(details)
    assert functional.target == target
    # Of the density alone, as moments are.
    assert isinstance(functional.network, MomentNetConfig) or functional.network.inputs == "density"
    assert sum(path.stat().st_size for path in PRETRAINED[name].iterdir()) < size


def test_other_bytes_are_noticed(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in (ARRAYS, DESCRIPTION):
        shutil.copy(PRETRAINED[NAME] / name, folder / name)
    content = bytearray((folder / ARRAYS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / ARRAYS).write_bytes(content)
    with pytest.raises(InputError, match="wrong checksum"):
        kn.load_functional(folder)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_command_line_takes_conditions_of_the_training(tmp_path, capsys):
    path = tmp_path / "h2.xyz"
    path.write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    assert run("optimize", path, "--functional", NAME, "--reference", "--grid-level", 2) == 0
    captured = capsys.readouterr()
    assert f"H2, {NAME} + blyp" in captured.out
    assert "Kohn–Sham cc-pvdz" in captured.out
    assert captured.err == ""
    assert run("info", NAME) == 0
    assert f"{NAME}: learned T_s" in capsys.readouterr().out


def test_other_conditions_than_those_of_the_training(tmp_path, capsys):
    path = tmp_path / "be.xyz"
    path.write_text("1\n\nBe 0 0 0\n")
    assert run("optimize", path, "--functional", NAME, "--xc", "pbe", "--grid-level", 0) == 2
    other, electrons, element = capsys.readouterr().err.splitlines()
    assert other == f"kineticnet: warning: '{NAME}' was trained with xc blyp, but --xc is pbe"
    assert electrons == (
        f"kineticnet: warning: '{NAME}' was trained on systems of 2 electrons, but Be (charge 0) "
        "has 4"
    )
    assert "Be" in element
