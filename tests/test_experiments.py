"""The experiments run from the beginning to the end, in a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kineticnet_jax.data.config import load_config
from kineticnet_jax.train.config import load_train_config

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CONFIGURATIONS = sorted(EXPERIMENTS.glob("**/*.toml"))


def test_two_electrons_in_a_small_size(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, EXPERIMENTS / "two_electron" / "run.py", "--smoke", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"report in {out / 'report.md'}" in done.stdout
    errors = json.loads((out / "errors.json").read_text())
    for part in ("fixed_densities", "optimizations"):
        assert {"two-electron", "tf", "vw"} == set(errors[part])
    assert errors["optimizations"]["vw"]["H2"]["mae"] < 0.02
    for name in ("report.md", "curve.png", "bond.png", "potential.png"):
        assert (out / name).stat().st_size > 500


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: "/".join(path.parts[-3:]))
def test_configurations_are_valid(path):
    is_training = path.stem == "train" or "training" in path.parts
    assert (load_train_config if is_training else load_config)(path).name
