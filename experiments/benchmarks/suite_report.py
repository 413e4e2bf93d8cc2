"""The report of the suite: limits, tables, fits and figures of what was measured."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from suite_cases import (
    CLOSED_FORM,
    COARSE_LEVEL,
    FAMILIES,
    PRECISION,
    SHARE,
    SMALL_NETWORK,
    TOLERANCE,
)
from suite_fits import PowerLaw, describe_crossing, fit_power_law
from suite_results import DONE, Row, Series, all_series, latest_rows, precision_rows

from kineticnet_jax.colors import COLORS, GREY
from kineticnet_jax.files import complete_file
from kineticnet_jax.functionals.registry import FUNCTIONALS

QUANTITIES = {
    "optimize": "whole optimization",
    "gradient": "one energy and gradient",
    "hvp": "one Hessian-vector product",
    "prepare": "preparation",
    "total": "preparation and optimization",
    "peak": "peak memory",
}

CLUSTER = 20
"""Molecules of the largest cluster that has limits."""

MARKERS = "osD^vPX"


def write_report(rows: Sequence[Row], here: dict[str, Any], folder: Path) -> str:
    """Draws the figures into a folder; returns the report as Markdown."""
    series = all_series(rows)
    precision = precision_rows(rows)
    commits = sorted({row["commit"] for row in rows})
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    lines = [
        "# Speed and memory beside Kohn–Sham",
        "",
        "Written by `python experiments/benchmarks/suite.py`. Every molecule with every functional",
        "in a process of its own, in which PySCF's RKS (its defaults, no density fitting)",
        "alternates with the optimization: same xc functional, basis, grid level and number of",
        f"processors. Medians of warm calls. {here['cores']} core(s) of {here['processor']}, "
        f"{here['memory']:.0f} GB of",
        f"memory, grid level {here['grid_level']}, float64, {versions},",
        f"commit {', '.join(commits)}. Optimizations begin on a grid of level {COARSE_LEVEL} in",
        "float32 (`coarse`), whose preparation is in the times of preparation, and end at a",
        f"gradient norm of {TOLERANCE:g}, where energies are converged to {TOLERANCE**2 / 2:.0e}",
        "Ha; those of RKS are to 1e-9 Ha.",
        "",
        f"`{CLOSED_FORM}` and `{SMALL_NETWORK}` cost what trained functionals of these kinds and",
        f"sizes do, but are not trained: their parameters make T_P {SHARE:g} T_TF and 0.505 T_TF,",
        "and energies and numbers of steps are those of these. `vw` is for two electrons.",
        "",
        "## Limits",
        "",
        "| what | limit | measured | held |",
        "| --- | ---: | ---: | --- |",
        *_limits(series, precision),
        "",
        "## Growth",
        "",
        "Exponents of n, fitted to logarithms over the sizes in brackets, and the size from which",
        "on the fit of the whole optimization is below that of RKS.",
        "",
        f"| family | functional | {' | '.join(QUANTITIES.values())} | RKS | crossing |",
        f"| --- | --- |{' ---: |' * (len(QUANTITIES) + 1)} --- |",
        *(_growth(one) for one in series),
    ]
    for system in FAMILIES:
        members = [one for one in series if one.system == system]
        if members:
            lines += _family(system, members, folder)
    if precision:
        lines += _precision(precision)
    failed = [row for row in latest_rows(rows) if row["status"] != DONE]
    if failed:
        lines += ["", "## What did not come to its end", ""]
        lines += [f"- {_molecule(row)}, {row['functional']}: {row['status']}" for row in failed]
    return "\n".join(lines) + "\n"


def _molecule(row: Row) -> str:
    return f"{FAMILIES[row['system']].label}, n = {row['size']}"


def _limits(series: Sequence[Series], precision: Sequence[Row]) -> Iterator[str]:
    """A row for every limit, with what was measured."""

    def line(what: str, limit: float, value: float | None, text: str) -> str:
        if value is None:
            return f"| {what} | {limit:g} | not measured | |"
        return f"| {what} | {limit:g} | {text} | {'yes' if value <= limit else 'no'} |"

    def ratio(one: Series, n: int, limit: float) -> str:
        found = one.ratio("optimize", n)
        what = f"{one.family.label}, n = {n}, {one.label}: optimization / RKS"
        if found is None:
            return line(what, limit, None, "")
        fit, note = one.rks_fit, ""
        if not found[1] and fit is not None:
            note = f" (RKS {fit(n):.0f} s by its fit, {_power(fit)})"
        if not one.rows[n].get("converged"):
            note += ", not converged"
        return line(what, limit, found[0], f"{found[0]:.3g}{note}")

    def members(system: str, n: int) -> list[Series]:
        return [one for one in series if one.system == system and n in one.rows]

    for one in members("hydrogen", 1):
        yield ratio(one, 1, 0.5)
    for one in members("water", 1):
        if one.functional == "tf+vw":
            yield ratio(one, 1, 0.5)
    for one in members("water", CLUSTER):
        if one.functional not in FUNCTIONALS:
            yield ratio(one, CLUSTER, 0.1)
    for one in [one for one in series if one.system == "water"]:
        large = {n: t for n, t in one.values("gradient").items() if 5 <= n <= CLUSTER}
        if one.functional == SMALL_NETWORK:
            fit = fit_power_law(large) if CLUSTER in large else None
            yield line(
                f"(H2O)_n, n = 5 to {CLUSTER}, {one.label}: exponent of energy and gradient",
                1.15,
                None if fit is None else fit.exponent,
                "" if fit is None else f"{fit.exponent:.2f}",
            )
    for one in members("water", CLUSTER):
        peak = one.values("peak").get(CLUSTER)
        yield line(
            f"(H2O)_{CLUSTER}, {one.label}: peak memory in GB",
            3.0,
            peak,
            "" if peak is None else f"{peak:.2f}",
        )
    for row in precision:
        error = row.get("error_fixed")
        yield line(
            f"{_molecule(row)}, {Path(row['functional']).name}: |E in float32 - float64| in mHa",
            0.01,
            None if error is None else abs(error),
            "" if error is None else f"{abs(error):.4f}",
        )


def _growth(one: Series) -> str:
    ours, theirs = one.fit("optimize"), one.rks_fit
    where = describe_crossing(ours, theirs) if ours and theirs else ""
    fits = [one.fit(name) for name in QUANTITIES]
    cells = " | ".join(_power(fit) for fit in (*fits, theirs))
    return f"| {one.family.label} | {one.label} | {cells} | {where} |"


def _power(fit: PowerLaw | None) -> str:
    return "" if fit is None else f"n^{fit.exponent:.2f} [{fit.smallest}–{fit.largest}]"


def _family(system: str, members: Sequence[Series], folder: Path) -> list[str]:
    """Table and figure of a family."""
    with complete_file(folder / f"{system}.png") as path:
        plot_family(members).savefig(path, dpi=150)
    lines = [
        "",
        f"## {FAMILIES[system].label}",
        "",
        f"![Ratios to RKS of {FAMILIES[system].label}]({system}.png)",
        "",
        "Seconds; preparation of a geometry as the first in a process and as a later one,",
        "compilation of energy and gradient, and of the whole optimization (its first run less a",
        "warm one). Ratios are to RKS; ≈ where that is by its fit, * where the optimization did",
        "not converge, † where the functional was not trained on as many electrons.",
        "",
        "| n | functional | functions | points | preparation, first | later "
        "| compilation, gradient | optimization | energy and gradient | Hessian-vector "
        "| optimization | steps | RKS | optimization / RKS | energy and gradient / RKS "
        "| memory (GB) | RKS (GB) |",
        "| ---: | --- |" + " ---: |" * 15,
    ]
    for n in FAMILIES[system].sizes:
        lines += [_row(one, n) for one in members if n in one.rows]
    return lines


def _row(one: Series, n: int) -> str:
    row = one.rows[n]

    def number(key: str, form: str = ".3g") -> str:
        return f"{row[key]:{form}}" if key in row else ""

    def ratio(quantity: str) -> str:
        found = one.ratio(quantity, n)
        return "" if found is None else f"{'' if found[1] else '≈ '}{found[0]:.2g}"

    compilation = ""
    if {"optimize", "optimize_first"} <= row.keys():
        compilation = f"{row['optimize_first'] - row['optimize']:.3g}"
    label = one.label + ("" if row.get("trained", True) else "†")
    steps = number("steps", "d") + ("" if row.get("converged", True) else "*")
    rks = f"{one.rks[n]:.3g}" if n in one.rks else ""
    peak = number("peak", ".2f") if row["status"] == DONE else row["status"].partition(" in ")[0]
    rks_peak = f"{one.rks_peak[n]:.2f}" if n in one.rks_peak else ""
    cells = [
        str(n),
        label,
        number("functions", ","),
        number("points", ","),
        number("prepare_first"),
        number("prepare"),
        number("gradient_compile"),
        compilation,
        number("gradient"),
        number("hvp"),
        number("optimize"),
        steps,
        rks,
        ratio("optimize"),
        ratio("gradient"),
        peak,
        rks_peak,
    ]
    return f"| {' | '.join(cells)} |"


def plot_family(members: Sequence[Series]) -> Figure:
    """Ratios of time and memory to RKS against the size, with their power laws."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    for axes, quantity in zip(figure.subplots(2, 3).flat, QUANTITIES, strict=True):
        _plot_ratios(axes, members, quantity)
    figure.suptitle(f"{members[0].family.label} relative to RKS with PySCF")
    return figure


def _plot_ratios(axes: Axes, members: Sequence[Series], quantity: str) -> None:
    sizes = members[0].family.sizes
    axes.axhline(1, color=GREY, lw=1, ls="--")
    for i, one in enumerate(members):
        ratios = one.ratios(quantity)
        if not ratios:
            continue
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        fit = fit_power_law({n: value for n, (value, _) in ratios.items()}, one.family.fit_from)
        exponent = "" if fit is None else f": $n^{{{fit.exponent:.2f}}}$"
        axes.plot([], [], color=color, marker=marker, ls="", label=one.label + exponent)
        for n, (value, measured) in ratios.items():
            face = color if measured else "none"
            axes.plot(n, value, color=color, marker=marker, mfc=face, ls="")
        if fit is not None:
            ends = np.array([fit.smallest, fit.largest])
            axes.plot(ends, [fit(n) for n in ends], color=color, lw=1.2)
    axes.set(xscale="log", yscale="log", xlabel="n", title=QUANTITIES[quantity])
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_ylabel("ratio to RKS (hollow: RKS by its fit)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _precision(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "## float32 and float64",
        "",
        "Energy in float32 less that in float64, in mHa: of one density, that of the optimization",
        "in float64, and of optimizations in both, which end at a gradient norm of 1e-4 and 1e-6.",
        "Times in float64 over those in float32. For the fixed density the last layer of",
        f"`{SMALL_NETWORK}` is random.",
        "",
        "| molecule | functional | E, fixed density | E, optimized | time, energy and gradient "
        "| time, optimization |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]

    def number(row: Row, key: str) -> str:
        return f"{row[key]:+.4f}" if key in row else ""

    def speed(row: Row, key: str) -> str:
        names = (f"{key}_64", f"{key}_32")
        return f"{row[names[0]] / row[names[1]]:.2f}" if names[1] in row else ""

    order = {place: i for i, place in enumerate(PRECISION)}
    for row in sorted(rows, key=lambda row: order[row["system"], row["size"]]):
        lines.append(
            f"| {_molecule(row)} | {Path(row['functional']).name} | {number(row, 'error_fixed')} | "
            f"{number(row, 'error_optimized')} | {speed(row, 'gradient')} | "
            f"{speed(row, 'optimize')} |"
        )
    return lines
