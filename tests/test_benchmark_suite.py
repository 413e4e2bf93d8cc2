"""The parts of the suite of benchmarks that measure nothing: molecules, fits, results, report."""

import json

import numpy as np
import pytest
import suite
from suite_cases import CLOSED_FORM, FAMILIES, SMALL_NETWORK, Case, make_cases, make_functional
from suite_fits import PowerLaw, crossing, describe_crossing, fit_power_law
from suite_geometries import alkane, hydrogen_chain, water_cluster
from suite_report import plot_family, write_report
from suite_results import all_series

import kineticnet_jax as kn
from kineticnet_jax.units import BOHR_IN_ANGSTROM

SETTINGS = Case("cost", "water", 1, "tf+vw")
HERE = {"cores": 1, "grid_level": 3, "processor": "a", "memory": 8, "versions": {}, "commit": "1"}


def distances(molecule, element):
    """All distances of two atoms of an element in Å, in ascending order."""
    positions = molecule.positions[molecule.charges == element] * BOHR_IN_ANGSTROM
    vectors = positions[:, None] - positions[None]
    return np.sort(np.linalg.norm(vectors, axis=-1)[np.triu_indices(len(positions), 1)])


@pytest.mark.parametrize(
    ("molecule", "formula", "closest"),
    [
        (hydrogen_chain(64), "H128", 0.74),
        (water_cluster(1), "H2O", 1.51),
        (water_cluster(20), "H40O20", 1.51),
        (alkane(1), "CH4", 1.77),
        (alkane(10), "C10H22", 1.77),
    ],
)
def test_molecules_have_their_formula_and_no_clashes(molecule, formula, closest):
    assert molecule.formula == formula
    assert distances(molecule, 1)[0] > closest - 0.01


@pytest.mark.parametrize("n", [2, 5, 14, 20])
def test_water_obeys_the_ice_rules(n):
    molecule = water_cluster(n)
    near = distances(molecule, 8)
    assert near[0] == pytest.approx(2.76, abs=1e-4)
    bonds = np.sum(near < 3)
    assert bonds >= n - 1
    oxygen, hydrogen = (molecule.positions[molecule.charges == z] for z in (8, 1))
    to_oxygen = np.linalg.norm(hydrogen[:, None] - oxygen[None], axis=-1) * BOHR_IN_ANGSTROM
    assert np.sum(to_oxygen < 1) == 2 * n
    # One proton, and one only, on every line between two neighbours.
    assert np.sum((to_oxygen > 1.7) & (to_oxygen < 2)) == bonds
    np.testing.assert_array_equal(water_cluster(n).positions, molecule.positions)


def test_alkanes_are_tetrahedral_and_straight():
    molecule = alkane(6)
    carbon = molecule.positions[molecule.charges == 6] * BOHR_IN_ANGSTROM
    bonds = np.diff(carbon, axis=0)
    np.testing.assert_allclose(np.linalg.norm(bonds, axis=1), 1.53, atol=1e-4)
    np.testing.assert_allclose(bonds[2:], bonds[:-2], atol=1e-8)
    cosines = np.sum(bonds[1:] * bonds[:-1], axis=1) / 1.53**2
    np.testing.assert_allclose(cosines, 1 / 3, atol=1e-5)


def test_power_laws_are_found():
    fit = fit_power_law({n: 0.3 * n**1.7 if n >= 5 else 99.0 for n in (1, 2, 5, 10, 20)}, 5)
    assert (fit.smallest, fit.largest, fit.points) == (5, 20, 3)
    assert fit.exponent == pytest.approx(1.7)
    assert fit(40) == pytest.approx(0.3 * 40**1.7)


def test_small_results_are_fitted_where_there_are_no_others():
    fit = fit_power_law({1: 2.0, 2: 8.0, 5: 9.0}, 5)
    assert (fit.smallest, fit.largest) == (1, 5)
    assert fit_power_law({1: 2.0}, 1) is None


def test_power_laws_cross():
    ours, theirs = PowerLaw(4.0, 1.0, 1, 9, 3), PowerLaw(1.0, 2.0, 1, 9, 3)
    assert crossing(ours, theirs) == (pytest.approx(4.0), True)
    assert crossing(theirs, ours) == (pytest.approx(4.0), False)
    assert crossing(ours, PowerLaw(1.0, 1.0, 1, 9, 3)) == (np.inf, True)
    assert describe_crossing(ours, theirs) == "n = 4"
    assert describe_crossing(theirs, ours) == "faster below n = 4 only"
    assert describe_crossing(PowerLaw(0.1, 1.0, 1, 9, 3), theirs) == "always faster"
    assert describe_crossing(ours, PowerLaw(1.0, 0.5, 1, 9, 3)) == "never faster"
    assert describe_crossing(ours, PowerLaw(1.0, 1.0, 1, 9, 3)) == "never faster"


@pytest.mark.parametrize(("name", "share"), [(CLOSED_FORM, 0.9), (SMALL_NETWORK, 0.505)])
def test_stand_ins_are_multiples_of_thomas_fermi(prepared, name, share):
    system = prepared("H2", level=1)
    functional = make_functional(name, system.molecule)
    density = kn.initial_density(system)
    thomas_fermi, vw, ours = (
        float(kn.kinetic_energy(one, system, density))
        for one in (kn.load_functional("tf"), kn.load_functional("vw"), functional)
    )
    assert ours == pytest.approx(vw + share * thomas_fermi, rel=1e-3)


def test_functionals_are_measured_on_molecules_they_can_be_used_for():
    names = ("tf+vw", "vw", "two-electron")
    cases = list(make_cases(("hydrogen", "water"), names, 2, True, SETTINGS))
    found = {(case.system, case.size, case.functional) for case in cases if case.kind == "cost"}
    assert ("hydrogen", 1, "vw") in found
    assert ("hydrogen", 2, "two-electron") in found
    assert not {("hydrogen", 2, "vw"), ("water", 1, "two-electron")} & found
    alone = [(case.system, case.size) for case in cases if case.kind == "kohn-sham"]
    assert sorted(alone) == [(name, n) for name in ("hydrogen", "water") for n in (1, 2)]
    assert {case.system for case in cases if case.kind == "precision"} == {"water"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "watr"], "unknown system 'watr': did you mean 'water'?"),
        (["--cores", "0"], "--cores must be from 1"),
        (["--memory", "0"], "--memory must be positive"),
        (["--functionals", "tff", "--systems", "water"], "unknown functional 'tff'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, said):
    assert suite.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_process_is_ended_by_memory_and_time():
    assert suite.run_case(SETTINGS, 0.01, 60)["status"] == "more than 0.01 GB in start"
    assert suite.run_case(SETTINGS, 6, 0.05)["status"] == "more than 0.05 s in start"


def result(system, n, functional="tf+vw", kind="cost", **values):
    case = {"kind": kind, "system": system, "size": n, "functional": functional}
    case |= {"xc": "blyp", "basis": "cc-pvdz", "status": "done"}
    return HERE | case | values


def water_results():
    """Of tf+vw; RKS costs n² up to n = 10, optimization 2n and one gradient n/10."""
    for n in FAMILIES["water"].sizes:
        values = {"optimize": 2.0 * n, "optimize_first": 2.0 * n + 5, "gradient": 0.1 * n}
        values |= {"converged": True, "steps": 30, "peak": 1.0, "hvp": 0.2 * n}
        if n <= 10:
            yield result("water", n, "RKS", "kohn-sham", rks=1.1 * n**2, peak=0.5)
            values["rks"] = 1.0 * n**2
        yield result("water", n, **values)
        yield result("water", n, CLOSED_FORM, **values | {"optimize": 0.5 * n})


def test_ratios_are_to_measured_times_and_beyond_them_to_their_fit():
    one = next(one for one in all_series(list(water_results())) if one.functional == "tf+vw")
    assert one.ratio("optimize", 10) == (pytest.approx(0.2), True)
    assert one.ratio("optimize", 20) == (pytest.approx(0.1), False)
    assert one.ratio("peak", 10) == (2.0, True)
    assert one.ratio("peak", 20) is None


def test_the_report_judges_limits_and_says_what_failed(tmp_path):
    rows = list(water_results())
    rows.append(result("water", 20, SMALL_NETWORK, status="more than 6 GB in preparation"))
    rows.append(result("water", 1, kind="precision", error_fixed=-0.02, status="done"))
    text = write_report(rows, HERE, tmp_path)
    assert "| (H2O)_n, n = 1, tf+vw: optimization / RKS | 0.5 | 2 | no |" in text
    assert "n = 20, closed-form: optimization / RKS | 0.1 | 0.025 (RKS 400 s by its fit" in text
    assert f"- (H2O)_n, n = 20, {SMALL_NETWORK}: more than 6 GB in preparation" in text
    assert "|E in float32 - float64| in mHa | 0.01 | 0.0200 | no |" in text
    assert "| n^1.00 [5–20] |" in text
    assert "| n = 2 |" in text
    assert (tmp_path / "water.png").stat().st_size > 500


def test_figures_of_a_single_size_are_drawn():
    assert plot_family(all_series([result("water", 1, optimize=1.0, peak=1.0, rks=2.0)])).axes


def test_results_survive_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / suite.RESULTS
    rows = [result("water", 1), result("water", 2) | {"processor": "b"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"kind": "co')
    assert suite.read_results(path) == rows
    assert list(suite.same_machine(rows, HERE)) == rows[:1]


def test_cases_with_a_result_are_not_measured_again(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(suite, "environment", lambda cores, level: HERE)
    monkeypatch.setattr(suite.os, "sched_setaffinity", lambda *_: None)

    def fake(case, memory, limit):
        measured.append(case)
        return {"status": "done", "peak": 1.0, "rks": 2.0}

    monkeypatch.setattr(suite, "run_case", fake)
    arguments = ["--systems", "water", "--largest", "2", "--functionals", "tf+vw", "--cores", "1"]
    for more, count in (([], 5), ([], 5), (["--again"], 10), (["--retry"], 10)):
        assert suite.main([*arguments, *more, "--out", str(tmp_path)]) == 0
        assert len(measured) == count
