"""Notebooks are stored without outputs and run from top to bottom."""

import json
from pathlib import Path

import pytest
from compilation import NO_EMITTERS
from conftest import CACHE

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRAINING = "training"
"""Its programs run so often that their optimization pays."""

SECONDS = 600
"""For a cell; far more than it takes, as other tests run beside it."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_stored(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    if path.stem == TRAINING:
        monkeypatch.setenv("XLA_FLAGS", NO_EMITTERS)
    # Several notebooks have the same programs.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
