"""Many molecules at once: lines of results, and how a survey that was stopped goes on."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

import kineticnet_jax as kn
from kineticnet_jax import cli_optimize, cluster, survey
from kineticnet_jax.survey import Calculation

XYZ = """2
hydrogen
H 0 0 0
H 0 0 0.74
1
xenon, for which the basis has no functions
Xe 0 0 0
2
charge=1
He 0 0 0
H 0 0 0.8
2
hydrogen again
H 0 0 0
H 0 0 0.80
"""
SETTINGS = Calculation("vw", grid_level=1, reference=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an extended xyz file and the results of its geometries."""
    path = tmp_path_factory.mktemp("survey")
    (path / "all.xyz").write_text(XYZ)
    console = Console(record=True, file=io.StringIO())
    assert run(path, "all.jsonl", console) == cli_optimize.NOT_CONVERGED
    shown = " ".join(console.export_text().split())
    for words in ("4/4", "2: basis 'cc-pvdz' has no functions for element Xe", "3 of 4 converged"):
        assert words in shown
    return path


def run(folder, out, console=None):
    options = cli_optimize.Optimize(
        folder / "all.xyz",
        functional="vw",
        grid_level=1,
        reference=True,
        out=folder / out,
        workers=1,
    )
    return cli_optimize.optimize(options, console or Console(quiet=True))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(result):
    return {key: value for key, value in result.items() if "seconds" not in key}


def test_lines_are_single_optimizations(folder):
    results = {result["number"]: result for result in read(folder / "all.jsonl")}
    assert sorted(results) == [1, 2, 3, 4]
    assert "Xe" in results[2]["error"]
    for number in (1, 3, 4):
        result = results[number]
        assert result["settings"] == dataclasses.asdict(SETTINGS)
        assert result["converged"]
        assert abs(result["error_mha"]) < 0.1
        geometry = zip(result["symbols"], result["positions"], strict=True)
        lines = [f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in geometry]
        text = "\n".join([str(len(lines)), "", *lines])
        system = kn.prepare(kn.Molecule.from_string(text, result["charge"]), grid_level=1)
        solution = kn.optimize_density(system, "vw")
        assert result["energy"] == pytest.approx(solution.energy, abs=1e-9)
        assert result["components"] == pytest.approx(solution.components, abs=1e-5)


def test_a_survey_goes_on_after_a_line_that_is_half_written(folder):
    whole = (folder / "all.jsonl").read_bytes()
    first, second, *_ = whole.splitlines(keepends=True)
    path = folder / "stopped.jsonl"
    path.write_bytes(first + second[:100])
    assert run(folder, path.name) == cli_optimize.NOT_CONVERGED
    assert path.read_bytes().startswith(first)
    by_number = [
        sorted(map(without_times, read(folder / name)), key=lambda result: result["number"])
        for name in ("all.jsonl", path.name)
    ]
    assert by_number[0] == by_number[1]


def molecules(folder):
    return kn.interchange.read_frames(folder / "all.xyz")


def test_a_survey_that_is_complete_is_left_as_it_is(folder):
    path = folder / "all.jsonl"
    before = path.read_bytes()
    results = survey.survey(molecules(folder), SETTINGS, path)
    assert [result["number"] for result in results] == [1, 2, 3, 4]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (None, {"grid_level": 2}, "line 1 is no result of these molecules with these settings"),
        (b"[]\n", {}, "line 1 is no result"),
        (b"my notes\n", {}, "line 1 is no result"),
        (b"my notes", {}, "holds something else; choose another file"),
    ],
)
def test_other_files_are_left_alone(folder, tmp_path, content, changes, message):
    path = tmp_path / "file"
    path.write_bytes(content or (folder / "all.jsonl").read_bytes())
    before = path.read_bytes()
    with pytest.raises(kn.InputError, match=message):
        survey.survey(molecules(folder), dataclasses.replace(SETTINGS, **changes), path)
    assert path.read_bytes() == before


def test_two_surveys_on_one_file_are_refused(folder):
    path = folder / "locked.jsonl"
    with survey._locked(path), pytest.raises(kn.InputError, match="another run is writing it"):
        survey.survey(molecules(folder), SETTINGS, path)


def test_bad_numbers_of_workers_write_nothing(folder, tmp_path):
    with pytest.raises(kn.InputError, match="workers must be at least 1"):
        survey.survey(molecules(folder), SETTINGS, tmp_path / "x.jsonl", workers=0)
    assert not list(tmp_path.iterdir())


def test_a_file_without_geometries_is_bad_input(tmp_path):
    (tmp_path / "all.xyz").write_text("")
    with pytest.raises(kn.InputError, match="empty, expected geometries"):
        run(tmp_path, "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_a_failing_worker_is_one_line(folder, tmp_path, monkeypatch):
    def fail(calculation, number, molecule):
        raise MemoryError

    monkeypatch.setattr(survey, "optimize_one", fail)
    with pytest.raises(kn.IncompleteError, match=r"MemoryError\); 0 of 4 molecules are kept"):
        survey.survey(molecules(folder), SETTINGS, tmp_path / "x.jsonl", workers=1)


def test_programs_are_dropped_when_there_are_many(monkeypatch):
    dropped = []
    monkeypatch.setattr(cluster.jax, "clear_caches", lambda: dropped.append(True))
    cluster.drop_programs_if_many()
    monkeypatch.setattr(cluster, "MOST_MAPPINGS", 1)
    cluster.drop_programs_if_many()
    assert len(dropped) == cluster.MAPPINGS.exists()
