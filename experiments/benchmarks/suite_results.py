"""Results of the suite by family and functional, with their fits and ratios to Kohn–Sham."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite_cases import FAMILIES, Family
from suite_fits import PowerLaw, fit_power_law

DONE = "done"
"""Status of a measurement that came to its end."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """What was measured of one functional in one family.

    Attributes:
        system: name of the family.
        functional: name or folder of the functional.
        rows: results by size.
        rks: seconds of Kohn–Sham calculations with the same xc functional and basis by size:
            alternating with this functional where there is such a time, else alone.
        rks_peak: memory of such a calculation alone in GB by size.
    """

    system: str
    functional: str
    rows: dict[int, Row]
    rks: dict[int, float]
    rks_peak: dict[int, float]

    @property
    def family(self) -> Family:
        """The family of molecules."""
        return FAMILIES[self.system]

    @property
    def label(self) -> str:
        """The functional in tables and figures."""
        return Path(self.functional).name

    def values(self, quantity: str) -> dict[int, float]:
        """A quantity by size, where it was measured; "total" is an optimization from nothing."""
        if quantity == "total":
            prepare, optimize = self.values("prepare"), self.values("optimize")
            return {n: prepare[n] + optimize[n] for n in prepare if n in optimize}
        whole = quantity != "peak"
        return {
            n: row[quantity]
            for n, row in self.rows.items()
            # The peak of a process that was ended before it was done is not its peak.
            if quantity in row and (whole or row["status"] == DONE)
        }

    def fit(self, quantity: str) -> PowerLaw | None:
        """The power law of a quantity."""
        return fit_power_law(self.values(quantity), self.family.fit_from)

    @property
    def rks_fit(self) -> PowerLaw | None:
        """The power law of the time of Kohn–Sham calculations."""
        return fit_power_law(self.rks, self.family.fit_from)

    def ratio(self, quantity: str, n: int) -> tuple[float, bool] | None:
        """A quantity over that of Kohn–Sham, and whether the latter was measured; or None."""
        value, theirs = self.values(quantity).get(n), self.rks
        if value is None:
            return None
        if quantity == "peak":
            return (value / self.rks_peak[n], True) if n in self.rks_peak else None
        if n in theirs:
            return value / theirs[n], True
        fit = self.rks_fit
        return None if fit is None else (value / fit(n), False)

    def ratios(self, quantity: str) -> dict[int, tuple[float, bool]]:
        """`ratio` by size, where there is one."""
        found = {n: self.ratio(quantity, n) for n in sorted(self.rows)}
        return {n: ratio for n, ratio in found.items() if ratio is not None}


def latest_rows(rows: Sequence[Row]) -> list[Row]:
    """The last result of every case."""
    names = ("kind", "system", "functional", "xc", "basis", "size")
    return list({tuple(row[name] for name in names): row for row in rows}.values())


def all_series(rows: Sequence[Row]) -> list[Series]:
    """The latest results of the kind "cost", family by family and size by size."""
    order = list(FAMILIES)
    latest = sorted(latest_rows(rows), key=lambda row: (order.index(row["system"]), row["size"]))
    alone = [row for row in latest if row["kind"] == "kohn-sham" and row["status"] == DONE]
    result: dict[tuple[str, str], Series] = {}
    for row in latest:
        if row["kind"] != "cost":
            continue
        key = (row["system"], row["functional"])
        one = result.setdefault(key, Series(*key, {}, {}, {}))
        one.rows[row["size"]] = row
        for other in alone:
            if all(other[name] == row[name] for name in ("system", "xc", "basis")):
                one.rks.setdefault(other["size"], other["rks"])
                one.rks_peak[other["size"]] = other["peak"]
        if "rks" in row:
            one.rks[row["size"]] = row["rks"]
    return list(result.values())


def precision_rows(rows: Sequence[Row]) -> list[Row]:
    """The latest comparisons of float32 with float64."""
    return [row for row in latest_rows(rows) if row["kind"] == "precision"]
