"""Many molecules at a time against one at a time."""

import jax
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.errors import InputError

SETTINGS = {"basis": "sto-3g", "density_basis": "6-31g", "grid_level": 1}


def perturbed(molecule, seed):
    """The molecule with all its atoms moved a little."""
    noise = np.random.default_rng(seed).normal(size=molecule.positions.shape)
    return kn.Molecule.create(molecule.symbols, molecule.positions + 0.05 * noise, molecule.charge)


def one_at_a_time(molecules, functional, **options):
    return [
        kn.optimize_density(kn.prepare(molecule, **SETTINGS), functional, **options)
        for molecule in molecules
    ]


def check(together, alone):
    assert len(together) == len(alone)
    for solution, expected in zip(together, alone, strict=True):
        assert solution.energy == pytest.approx(expected.energy, abs=1e-8)
        assert solution.converged == expected.converged
        assert solution.steps == expected.steps
        assert solution.reason.split(":")[0] == expected.reason.split(":")[0]
        assert len(solution.history.energy) == solution.steps + 1
        for name, value in expected.components.items():
            assert solution.components[name] == pytest.approx(value, abs=1e-4)


def test_a_mixed_list_gives_what_each_molecule_gives_alone_in_its_order(molecule):
    water, hydrogen = molecule("H2O"), molecule("H2")
    molecules = [
        perturbed(water, 0),
        perturbed(hydrogen, 1),
        perturbed(water, 2),
        molecule("HeH+"),
        perturbed(hydrogen, 3),
    ]
    seen = []
    together = kn.optimize_densities(
        molecules, "tf+vw", threads=2, callback=lambda index, _: seen.append(index), **SETTINGS
    )
    check(together, one_at_a_time(molecules, "tf+vw"))
    assert sorted(seen) == list(range(5))
    assert {solution.energy for solution in together} == {
        solution.energy
        for solution in kn.optimize_densities(molecules, "tf+vw", threads=1, **SETTINGS)
    }


def test_a_molecule_that_fails_does_not_disturb_the_others(molecule):
    hydrogen = [perturbed(molecule("H2"), seed) for seed in range(3)]
    limit = min(solution.steps for solution in one_at_a_time(hydrogen, "vw"))
    molecules = [*hydrogen, molecule("stretched H2")]
    together = kn.optimize_densities(molecules, "vw", max_steps=limit, **SETTINGS)
    check(together, one_at_a_time(molecules, "vw", max_steps=limit))
    assert {solution.converged for solution in together} == {True, False}


def test_a_learned_functional_and_its_domain(molecule):
    molecules = [molecule("H2"), molecule("HeH+")]
    options = {"basis": "cc-pvdz", "grid_level": 1}
    together = kn.optimize_densities(molecules, "two-electron", max_steps=2, **options)
    for solution, single in zip(together, molecules, strict=True):
        system = kn.prepare(single, **options)
        alone = kn.optimize_density(system, "two-electron", max_steps=2)
        assert solution.energy == pytest.approx(alone.energy, abs=1e-8)
        assert solution.reason == alone.reason


def test_precision_is_that_of_the_thread_that_calls(molecule):
    with jax.enable_x64(False):
        (solution,) = kn.optimize_densities(
            [molecule("H2")], "vw", dtype="float32", max_steps=3, **SETTINGS
        )
    assert solution.density.coefficients.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"functional": "wv"}, "unknown functional 'wv': did you mean 'vw'"),
        ({"guess": "minoa"}, r"^molecule 1 \(H2\): unknown guess 'minoa': did you mean 'minao'"),
        ({"density_basis": "6-32g"}, r"^molecule 1 \(H2\): unknown basis '6-32g'"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"threads": 0}, "the number of threads must be at least 1, but is 0"),
    ],
)
def test_bad_arguments_are_refused(molecule, arguments, message):
    with pytest.raises(InputError, match=message):
        kn.optimize_densities([molecule("H2")], **({"functional": "vw"} | SETTINGS | arguments))


def test_the_molecule_that_cannot_be_computed_is_named(molecule):
    with pytest.raises(InputError, match=r"^molecule 2 \(H2O\): the functional has never seen O"):
        kn.optimize_densities([molecule("H2"), molecule("H2O")], "two-electron", max_steps=1)


def test_an_empty_list_has_no_solutions():
    assert kn.optimize_densities([], "vw") == []
