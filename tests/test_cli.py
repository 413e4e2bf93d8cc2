"""The command line: results, files, exit codes and one-line errors."""

import io
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import kineticnet_jax as kn
from kineticnet_jax import cli

H2 = "2\nhydrogen\nH 0 0 0\nH 0 0 0.74\n"


@pytest.fixture(autouse=True)
def _no_persistent_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


@pytest.fixture
def h2(tmp_path):
    path = tmp_path / "h2.xyz"
    path.write_text(H2)
    return str(path)


def run(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    return exit_info.value.code


def test_optimize_reports_and_writes_everything(h2, tmp_path, capsys):
    names = {kind: tmp_path / f"out.{kind}" for kind in ("json", "png", "cube")}
    options = ["--functional", "vw", "--grid-level", 2, "--reference", "--json", names["json"]]
    options += ["--plot", names["png"], "--cube", names["cube"]]
    assert run("optimize", h2, *options) == cli.DONE
    shown = capsys.readouterr().out
    for word in ("H2, vw + blyp", "kinetic", "total", "Kohn–Sham", "converged", "∫|n - n_KS|/N"):
        assert word in shown
    result = json.loads(names["json"].read_text())
    expected = "energy components converged reason gradient_norm steps seconds n_electrons "
    expected += "reference_energy error_mha density_l1 reference_seconds"
    assert set(expected.split()) <= set(result)
    assert result["converged"] is True
    assert abs(result["error_mha"]) < 0.02
    assert result["density_l1"] < 1e-4
    assert result["n_electrons"] == pytest.approx(2, abs=1e-4)
    assert sum(result["components"].values()) == pytest.approx(result["energy"], abs=1e-9)
    assert names["png"].read_bytes().startswith(b"\x89PNG")
    cube = names["cube"].read_text().splitlines()
    shape = [int(line.split()[0]) for line in cube[3:6]]
    n = np.array(" ".join(cube[8:]).split(), dtype=float)
    voxel = float(cube[3].split()[1]) ** 3
    assert n.size == np.prod(shape)
    # A rectangle rule on a cusp is crude.
    assert n.sum() * voxel == pytest.approx(2, abs=0.02)


def test_a_saved_density_is_a_starting_guess(h2, tmp_path, capsys):
    saved, orbital = tmp_path / "psi.npz", tmp_path / "psi.molden"
    options = ["--functional", "vw", "--grid-level", 0]
    assert run("optimize", h2, *options, "--save", saved) == cli.DONE
    again = ["--guess", saved, "--save", orbital, "--json", tmp_path / "again.json"]
    assert run("optimize", h2, *options, *again) == cli.DONE
    assert json.loads((tmp_path / "again.json").read_text())["steps"] <= 1
    assert orbital.read_text().startswith("[Molden Format]")
    capsys.readouterr()
    assert run("optimize", h2, *options, "--basis", "6-31g", "--guess", saved) == cli.BAD_INPUT
    assert "is in the density basis cc-pvdz" in capsys.readouterr().err
    assert run("optimize", h2, *options, "--save", tmp_path / "psi.txt") == cli.BAD_INPUT
    assert "must end in .npz or .molden" in capsys.readouterr().err


def test_running_out_of_steps_is_exit_code_one_and_still_reported(h2, tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--functional", "vw", "--grid-level", 2, "--guess", "random", "--max-steps", 1]
    assert run("optimize", h2, *options, "--json", out) == cli.NOT_CONVERGED
    result = json.loads(out.read_text())
    assert result["converged"] is False
    assert "raise max_steps" in result["reason"]
    assert "stopped after 1 steps" in capsys.readouterr().out.replace("\n", " ")


def test_an_interrupted_optimization_is_reported_and_written(h2, tmp_path, monkeypatch, capsys):
    optimize, handler = kn.optimize_density, signal.getsignal(signal.SIGINT)

    def interrupted(*arguments, **settings):
        signal.raise_signal(signal.SIGINT)
        return optimize(*arguments, **settings)

    monkeypatch.setattr(kn, "optimize_density", interrupted)
    path = tmp_path / "h2.json"
    options = ("--functional", "vw", "--guess", "random", "--grid-level", "2", "--json", path)
    assert run("optimize", h2, *options) == cli.INTERRUPTED
    shown = capsys.readouterr()
    assert "steps as asked: the gradient norm is" in " ".join(shown.out.split())
    assert shown.err == "kineticnet: interrupted\n"
    assert not json.loads(path.read_text())["converged"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_molecule_from_standard_input(monkeypatch, capsys):
    options = ["--functional", "vw", "--grid-level", 2]
    monkeypatch.setattr("sys.stdin", io.StringIO(H2))
    assert run("optimize", "-", *options) == cli.DONE
    assert "H2, vw + blyp" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n\nH 0 0 0\n"))
    assert run("optimize", "-", *options) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("kineticnet: standard input: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--functional", "vv"], "unknown functional 'vv': did you mean 'vw'?"),
        (["--xc", "blip"], "unknown xc functional 'blip': did you mean 'blyp'?"),
        (["--basis", "cc-pvdt"], "unknown basis 'cc-pvdt': did you mean 'cc-pv"),
        (["--density-basis", "evntempered"], "unknown basis 'evntempered': did you mean 'even-"),
        (["--guess", "mino"], "unknown guess 'mino': did you mean 'minao'?"),
        (["--guess", "none.npz"], "none.npz: no such file"),
        (["--grid-level", "9"], "grid level must be 0 to 5, but is 9"),
        (["--charge", "1"], "H2 with charge +1 has 1"),
        (["--charge", "2"], "H2 with charge +2 has 0"),
        (["--max-steps", "0"], "max_steps must be at least 1"),
        (["--tolerance", "-1"], "tolerance must be positive"),
        (["--json", "/nowhere/out.json"], "the folder /nowhere does not exist"),
        (["--json", "/"], "is a folder"),
        (["--json", "/proc/out.json"], "cannot be written"),
        (["--plot", "out.jpeg"], "a plot must end in .png, .pdf or .svg"),
        (["--xc", "none", "--reference"], "--reference needs an xc functional"),
        (["--workers", "2"], "--workers needs --out"),
        (["--out", "all.jsonl", "--plot", "out.png"], "--plot does not go with --out"),
        (["--out", "all.jsonl", "--guess", "old.npz"], "--guess FILE does not go with --out"),
        (["--out", "all.jsonl", "--grid-level", "9"], "grid level must be 0 to 5, but is 9"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_two(h2, capsys, options, message):
    assert run("optimize", h2, *options) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (bytes(range(256)), "not a text file"),
        (b"3\n\nH 0 0 0\nH 0 0 0.74\n", "announces 3 atoms, but 2 lines follow"),
        (b"2\n\nH 0 0 0\nH 0 0 abc\n", "line 4 must be 'symbol x y z'"),
        (b"2\n\nH 0 0 0\nQq 0 0 1\n", "unknown element 'Qq'"),
        (b"1\n\nPu 0 0 0\n", "no functions for element Pu"),
        (b"2\n\nH 0 0 0\nH 0 0 0.05\n", "are 0.050 Å apart"),
        (b"1\n\nLi 0 0 0\n", "Li with charge +0 has 3"),
    ],
)
def test_bad_files_are_one_line_and_exit_code_two(tmp_path, capsys, content, message):
    path = tmp_path / "molecule.xyz"
    if content is not None:
        path.write_bytes(content)
    assert run("optimize", path) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_usage_errors_are_exit_code_two(capsys):
    assert run("optimize") == cli.BAD_INPUT
    assert run("optimise", "x") == cli.BAD_INPUT
    assert "optimize" in capsys.readouterr().err


def test_a_failing_plot_leaves_no_half_written_file(h2, tmp_path, monkeypatch, capsys):
    out = tmp_path / "plot.png"
    out.write_text("earlier result")

    def failing(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", failing)
    options = ["--functional", "vw", "--grid-level", 1, "--plot", out]
    assert run("optimize", h2, *options) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.err == "kineticnet: a result could not be written: disk full\n"
    assert "converged" in captured.out
    assert out.read_text() == "earlier result"
    assert not list(tmp_path.glob(".plot*"))


def test_info_lists_what_is_available(tmp_path, capsys):
    out = tmp_path / "info.json"
    assert run("info", "--json", out) == cli.DONE
    content = json.loads(out.read_text())
    assert content["versions"]["jax"] == jax.__version__
    assert {"tf", "vw", "lkt"} <= set(content["functionals"])
    shown = capsys.readouterr().out
    for word in ("versions", "devices", "functionals", "cc-pvdz", "even-tempered"):
        assert word in shown


def test_module_runs_as_a_command_and_keeps_compiled_programs(tmp_path):
    helium = tmp_path / "he.xyz"
    helium.write_text("1\n\nHe 0 0 0\n")
    command = [sys.executable, "-m", "kineticnet_jax", "optimize", str(helium)]
    command += ["--functional", "vw", "--grid-level", "1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    environment.pop("XLA_FLAGS")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == cli.DONE, done.stderr
    assert "converged" in done.stdout
    assert done.stderr == ""
    assert any((tmp_path / "kineticnet_jax" / "xla").iterdir())


def test_info_of_a_data_set_that_is_none(tmp_path, capsys):
    path = tmp_path / "x.h5"
    path.write_text("text")
    assert run("info", path) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error == f"kineticnet: {path}: not an HDF5 file\n"


def test_generate_with_a_bad_configuration(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text('name = "x"\nfamilys = []\n')
    assert run("generate", config, "--out", tmp_path / "x.h5") == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "did you mean 'families'" in error
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.toml"]
