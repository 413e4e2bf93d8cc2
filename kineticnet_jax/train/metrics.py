"""The metrics of a training run: tables in CSV files that grow with it."""

import csv
from pathlib import Path
from typing import Any

from kineticnet_jax.files import complete_file
from kineticnet_jax.train.processes import is_first

METRICS, VALIDATION, BOTH = "metrics.csv", "validation.csv", "metrics.json"

METRIC_NAMES = (
    "step",
    "loss",
    "energy",
    "tau",
    "potential",
    "curvature",
    "step_norm",
    "samples_per_second",
    "seconds",
)
MOMENT_METRIC_NAMES = (*METRIC_NAMES, "visited")
VALIDATION_NAMES = ("step", "family", "samples", "energy", "largest", "tau", "potential", "median")


class Table:
    """A CSV file that grows row by row; rows of steps that will be done again are dropped.

    Only the first process writes it.

    Attributes:
        rows: numbers and names by column, numbers with six digits as in the file.
    """

    def __init__(self, path: Path, names: tuple[str, ...], step: int):
        self.path, self.names = path, names
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            self.rows = [row for row in read_table(path) if row["step"] <= step]
        if not is_first():
            return
        with complete_file(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        self.rows.append(
            {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        )
        if not is_first():
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.names).writerow(self.rows[-1])


def read_table(path: Path) -> list[dict[str, Any]]:
    """The complete rows of such a file, with numbers where there are numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        complete = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{key: _number(text) for key, text in row.items()} for row in complete]


def _number(text: str) -> int | float | str:
    """What a field of a CSV file stands for."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
