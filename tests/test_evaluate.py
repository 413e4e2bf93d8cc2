"""Errors of functionals: von Weizsäcker's are exactly zero for two electrons."""

import json

import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax.cli import main
from kineticnet_jax.evaluate import grid_errors, optimization_errors, sample_errors
from kineticnet_jax.evaluation_report import (
    distance_table,
    fixed_density_table,
    grid_table,
    markdown_table,
    optimization_table,
)
from kineticnet_jax.files import write_json
from kineticnet_jax.functionals.learned import LearnedFunctional, Provenance
from kineticnet_jax.functionals.moments import MomentConfig
from kineticnet_jax.functionals.storage import save_functional


def test_exact_functional_has_no_errors_at_fixed_densities(data):
    dataset = kn.Dataset(data).select("test")
    errors = sample_errors(kn.load_functional("vw"), dataset)
    assert len(errors.energy) == len(dataset)
    # The labels are exact integrals, the functional is one on the grid.
    np.testing.assert_allclose(errors.energy, 0, atol=3e-5)
    np.testing.assert_allclose(errors.tau, 0, atol=1e-9)
    assert np.max(errors.potential) < 1e-8
    np.testing.assert_array_equal(errors.label, dataset.kinetic_energies)


def test_exact_functional_has_no_errors_after_optimization(data):
    dataset = kn.Dataset(data).select("test", "H2")
    functionals = {name: kn.load_functional(name) for name in ("vw", "tf")}
    starts = (("hcore", 0), ("random", 3))
    errors = optimization_errors(functionals, dataset, starts)
    assert errors["vw"].guess.tolist() == ["hcore", "random 3"] * len(dataset.geometries)
    assert np.all(errors["vw"].converged)
    assert np.max(np.abs(errors["vw"].energy)) < 2e-5
    assert np.max(errors["vw"].density) < 1e-4
    assert np.max(errors["vw"].dipole) < 1e-4
    table = optimization_table(errors["vw"])["H2"]
    assert table["converged"] == 1
    assert table["spread"] < 1e-3
    assert np.min(np.abs(errors["tf"].energy)) > 0.1


def test_errors_on_other_grids(data):
    dataset = kn.Dataset(data).select("test")
    errors = grid_errors(kn.load_functional("vw"), dataset, (1, 3))
    assert errors.level.tolist() == [1, 3] * len(dataset.geometries)
    np.testing.assert_allclose(errors.energy, 0, atol=5e-5)
    assert np.max(np.abs(errors.energy[errors.level == 3])) < 1e-6
    row = grid_table(errors)["all"]
    assert list(row) == ["1", "3", "spread"]
    assert 0 < row["spread"] < 0.1
    assert row["1"] == pytest.approx(1e3 * np.mean(np.abs(errors.energy[::2])))


def test_table_of_errors(data):
    errors = sample_errors(kn.load_functional("tf"), kn.Dataset(data).select("test"))
    table = fixed_density_table(errors)
    assert list(table) == ["H2", "He", "all"]
    row = table["all"]
    assert row["mae"] == pytest.approx(1e3 * np.mean(np.abs(errors.energy)))
    assert row["largest"] >= row["percentile95"] >= row["median"] > 0
    assert row["tau"] >= row["mae"]
    assert row["above"] == np.sum(np.abs(errors.energy) > 1.594e-3) > 0
    ground = kn.Dataset(data).record(int(errors.geometry[-1])).kinetic_energy[0]
    assert errors.ground_state[-1] == ground
    distances = distance_table(errors)
    assert sum(part["samples"] for part in distances.values()) == row["samples"]
    assert sum(part["above"] for part in distances.values()) == row["above"]
    assert max(part["largest"] for part in distances.values()) == row["largest"]
    nearest = np.abs(np.log(errors.label / errors.ground_state)) < 0.05
    assert distances["0 to 0.05"]["samples"] == np.sum(nearest) < row["samples"]


def test_what_a_functional_lacks_is_a_dash_in_its_table():
    row = {"mae": 0.12345, "tau": np.nan, "of a file": None}
    lines = markdown_table(tuple(row), {"mine": {"H2": row}})
    assert lines[-1] == "| mine | H2 | 0.1235 | – | – |"


def test_files_have_null_for_what_is_not_a_number(tmp_path):
    write_json(tmp_path / "x.json", {"row": {"mae": 0.5, "tau": np.nan}, "all": [np.inf, 1.0, 2]})
    content = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert content == {"row": {"mae": 0.5, "tau": None}, "all": [None, 1.0, 2]}


def test_report_of_the_command_line(data, tmp_path, capsys):
    out = tmp_path / "report"
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "vw", "--data", str(data), "--out", str(out), "--fixed-only"])
    assert end.value.code == 0
    assert "vw: T_s MAE" in capsys.readouterr().out
    text = (out / "report.md").read_text()
    for name in ("tf", "tf+vw", "lkt", "vw"):
        assert f"| {name} | H2 |" in text
    # NaN is no JSON: what a functional lacks is null.
    content = json.loads((out / "errors.json").read_text(), parse_constant=pytest.fail)
    assert content["fixed_densities"]["vw"]["H2"]["mae"] < 0.03
    assert content["fixed_densities"]["tf"]["H2"]["mae"] > 50
    assert len(content["samples"]["tf"]["energy"]) == len(kn.Dataset(data).select("test"))
    assert (out / "parity.png").stat().st_size > 10_000
    assert (out / "errors.png").stat().st_size > 10_000


def test_interrupted_evaluation_leaves_what_it_knows(data, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kineticnet_jax.evaluate.optimization_errors", interrupt)
    out = tmp_path / "report"
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "vw", "--data", str(data), "--out", str(out), "--alone"])
    assert end.value.code == 1
    assert capsys.readouterr().err.strip().endswith(f"errors at fixed densities are in {out}")
    assert "| vw | H2 |" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vww"], "unknown functional 'vww'"),
        (["vw", "--guesses", "sda"], "unknown guess 'sda': did you mean 'sad'"),
        (["vw", "--seeds", "0"], "seeds must be at least 1"),
        (["vw", "--split", "tests"], "unknown split 'tests'"),
    ],
)
def test_bad_input_is_one_line(data, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *arguments, "--data", str(data), "--out", str(tmp_path / "report")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_data_of_other_elements_and_another_basis(data, tmp_path, capsys):
    moments = MomentConfig((1,))
    details = (("xc", "blyp"), ("basis", "cc-pvdz"))
    functional = LearnedFunctional(
        moments=moments,
        coefficients=np.zeros(len(moments.names)),
        provenance=Provenance("mine", details),
    )
    save_functional(functional, tmp_path / "mine")
    report = tmp_path / "report"
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path / "mine"), "--data", str(data), "--out", str(report)])
    assert end.value.code == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == (
        "kineticnet: warning: 'mine' was trained with basis cc-pvdz, but the data set has 6-31g"
    )
    assert "He" in error
    assert not report.exists()


def test_folder_with_something_else_is_left_alone(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "vw", "--data", str(data), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "exists and holds no report" in capsys.readouterr().err
