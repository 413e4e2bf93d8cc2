"""Errors of functionals as a Markdown table, figures and JSON."""

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kineticnet_jax.colors import COLORS
from kineticnet_jax.evaluate import Curvatures, GridErrors, OptimizationErrors, SampleErrors
from kineticnet_jax.files import complete_file, write_json
from kineticnet_jax.units import CHEMICAL_ACCURACY_IN_MILLIHARTREE

ALL = "all"

FIXED_HEADS = (
    "samples",
    "T_s MAE",
    "median",
    "95 %",
    "largest",
    "above 1.594",
    "∫\\|Δτ\\| dr",
    "potential",
    "median",
)
DISTANCE_HEADS = ("samples", "T_s MAE", "largest", "above 1.594")
DISTANCE = "\\|ln(T_s / T_s of the ground state)\\|"
DISTANCES = (0.0, 0.05, 0.1, 0.2, 0.4, np.inf)
"""Borders of |ln(T_s / T_s of the ground state)| between which errors are shown."""

OPTIMIZED_HEADS = (
    "runs",
    "converged",
    "E MAE (mHa)",
    "largest",
    "between guesses",
    "∫\\|Δn\\| dr/N",
    "largest",
    "dipole (e bohr)",
    "steps",
    "seconds",
)


def fixed_density_table(errors: SampleErrors) -> dict[str, dict[str, float]]:
    """Errors at fixed densities in mHa, for each family and for all samples.

    Returns:
        For each family: number of samples; mean absolute error, median, 95th percentile and
        largest error of T_s; number of samples worse than chemical accuracy; mean of ∫|Δτ| dr;
        mean and median of the error of the potential as an energy. NaN where there is nothing to
        judge.
    """

    def row(chosen: np.ndarray) -> dict[str, float]:
        energy = 1e3 * np.abs(errors.energy[chosen])
        potential, tau = 1e3 * errors.potential[chosen], 1e3 * errors.tau[chosen]
        return {
            "samples": float(np.sum(chosen)),
            "mae": float(np.mean(energy)),
            "median": float(np.median(energy)),
            "percentile95": float(np.percentile(energy, 95)),
            "largest": float(np.max(energy)),
            "above": _worse_than_chemical_accuracy(energy),
            "tau": _of_finite(np.mean, tau),
            "potential_mean": _of_finite(np.mean, potential),
            "potential_median": _of_finite(np.median, potential),
        }

    return _by_family(errors.family, row)


def distance_table(errors: SampleErrors) -> dict[str, dict[str, float]]:
    """Errors of T_s in mHa by how far an external potential takes it from the ground state.

    Returns:
        For each interval of |ln(T_s / T_s of the ground state)| that has samples: their number,
        mean absolute and largest error, and how many are worse than chemical accuracy.
    """
    distance = np.abs(np.log(errors.label / errors.ground_state))
    rows = {}
    for low, high in pairwise(DISTANCES):
        energy = 1e3 * np.abs(errors.energy[(distance >= low) & (distance < high)])
        if len(energy):
            rows[f"{low:g} to {high:g}" if np.isfinite(high) else f"from {low:g}"] = {
                "samples": float(len(energy)),
                "mae": float(np.mean(energy)),
                "largest": float(np.max(energy)),
                "above": _worse_than_chemical_accuracy(energy),
            }
    return rows


def optimization_table(errors: OptimizationErrors) -> dict[str, dict[str, float]]:
    """Errors after density optimization, for each family and for all runs.

    Returns:
        For each family: number of runs; fraction that converged; mean absolute and largest error
        of the energy in mHa; the largest difference between the starting guesses of a geometry in
        mHa; mean and largest ∫|n - n_KS| dr / N; mean error of the dipole moment in e bohr; mean
        number of steps; median seconds.
    """

    def row(chosen: np.ndarray) -> dict[str, float]:
        energy = 1e3 * errors.energy[chosen]
        geometry = errors.geometry[chosen]
        spreads = [np.ptp(energy[geometry == one]) for one in np.unique(geometry)]
        return {
            "runs": float(np.sum(chosen)),
            "converged": float(np.mean(errors.converged[chosen])),
            "mae": float(np.mean(np.abs(energy))),
            "largest": float(np.max(np.abs(energy))),
            "spread": float(np.max(spreads)),
            "density_mean": float(np.mean(errors.density[chosen])),
            "density_largest": float(np.max(errors.density[chosen])),
            "dipole": float(np.mean(errors.dipole[chosen])),
            "steps": float(np.mean(errors.steps[chosen])),
            "seconds": float(np.median(errors.seconds[chosen])),
        }

    return _by_family(errors.family, row)


CURVATURE_HEADS = ("geometries", "lowest", "mean", "negative")


def curvature_table(curvatures: Curvatures) -> dict[str, dict[str, float]]:
    """Lowest curvatures of the total energy at Kohn-Sham densities in hartree.

    Returns:
        For each family: number of geometries; the lowest curvature of all and the mean of the
        lowest ones; number of geometries where it is negative.
    """

    def row(chosen: np.ndarray) -> dict[str, float]:
        lowest = curvatures.lowest[chosen]
        return {
            "geometries": float(len(lowest)),
            "lowest": float(np.min(lowest)),
            "mean": float(np.mean(lowest)),
            "negative": float(np.sum(lowest < 0)),
        }

    return _by_family(curvatures.family, row)


def grid_table(errors: GridErrors) -> dict[str, dict[str, float]]:
    """Errors on several grids in mHa, for each family and for all of them.

    Returns:
        For each family the mean absolute error of T_s on the grids of each level, and the largest
        difference between two grids of a density.
    """
    levels = np.unique(errors.level)

    def row(chosen: np.ndarray) -> dict[str, float]:
        energy, geometry = 1e3 * errors.energy[chosen], errors.geometry[chosen]
        level = errors.level[chosen]
        means = {str(one): float(np.mean(np.abs(energy[level == one]))) for one in levels}
        spreads = [np.ptp(energy[geometry == one]) for one in np.unique(geometry)]
        return means | {"spread": float(np.max(spreads))}

    return _by_family(errors.family, row)


def write_report(
    folder: Path,
    title: str,
    fixed: dict[str, SampleErrors],
    optimized: dict[str, OptimizationErrors],
    grids: dict[str, GridErrors],
    curvatures: dict[str, Curvatures] | None = None,
) -> None:
    """Writes report.md, errors.json and figures into a folder.

    Args:
        folder: exists already.
        title: first line of the report.
        fixed: errors at fixed densities for each functional.
        optimized: errors after optimization for each functional; may be empty.
        grids: errors on several grids for each functional; may be empty.
        curvatures: of the total energy with each functional at Kohn-Sham densities.
    """
    tables = {name: fixed_density_table(errors) for name, errors in fixed.items()}
    content: dict[str, Any] = {"fixed_densities": tables}
    lines = [f"# {title}", "", "## At fixed densities", ""]
    lines += ["Errors in mHa; that of the potential is the energy an optimizer would wrongly gain."]
    lines += ["", *markdown_table(FIXED_HEADS, tables), ""]
    lines += ["![parity](parity.png)", "", "![errors](errors.png)", ""]
    content["distances"] = {name: distance_table(errors) for name, errors in fixed.items()}
    lines += ["By how far the external potential takes T_s from that of the ground state, in mHa:"]
    lines += ["", *markdown_table(DISTANCE_HEADS, content["distances"], DISTANCE), ""]
    if optimized:
        content["optimizations"] = {
            name: optimization_table(errors) for name, errors in optimized.items()
        }
        lines += ["## After density optimization", ""]
        lines += [*markdown_table(OPTIMIZED_HEADS, content["optimizations"]), ""]
    if grids:
        content["grids"] = {name: grid_table(errors) for name, errors in grids.items()}
        levels = np.unique(next(iter(grids.values())).level)
        heads = (*(f"level {level}" for level in levels), "largest difference")
        lines += ["## On other grids", ""]
        lines += ["MAE of T_s of ground states in mHa on grids of several levels.", ""]
        lines += [*markdown_table(heads, content["grids"]), ""]
    if curvatures:
        content["curvatures"] = {name: curvature_table(one) for name, one in curvatures.items()}
        lines += ["## Curvature", ""]
        lines += ["Lowest eigenvalues of the Hessian of the total energy at Kohn–Sham densities"]
        lines += ["(1 where only T_vW counts); a density with a negative one is no minimum.", ""]
        lines += [*markdown_table(CURVATURE_HEADS, content["curvatures"]), ""]
    content["samples"] = {name: _columns(errors) for name, errors in fixed.items()}
    content["runs"] = {name: _columns(errors) for name, errors in optimized.items()}
    write_json(folder / "errors.json", content)
    for name, figure in (("parity.png", plot_parity(fixed)), ("errors.png", plot_errors(fixed))):
        with complete_file(folder / name) as temporary:
            figure.savefig(temporary, dpi=150)
    with complete_file(folder / "report.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def plot_parity(errors: dict[str, SampleErrors]) -> Figure:
    """Predicted against exact T_s for each functional, a colour for each family."""
    figure = Figure(figsize=(4 * len(errors), 4), layout="constrained")
    panels = figure.subplots(1, len(errors), squeeze=False)[0]
    for axes, (name, one) in zip(panels, errors.items(), strict=True):
        for family, color in zip(np.unique(one.family), _colors(), strict=False):
            chosen = one.family == family
            label = one.label[chosen]
            axes.plot(label, label + one.energy[chosen], ".", ms=3, color=color, label=str(family))
        ends = [one.label.min(), one.label.max()]
        axes.plot(ends, ends, color="0.5", lw=0.8)
        axes.set(title=name, xlabel="exact T$_s$ (Ha)", ylabel="predicted T$_s$ (Ha)")
        axes.legend(frameon=False, fontsize="small")
    return figure


def plot_errors(errors: dict[str, SampleErrors]) -> Figure:
    """Histograms of the absolute errors of T_s and of the potential on a logarithmic axis."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("energy", "potential"),
        ("|ΔT$_s$| (mHa)", "error of the potential, as energy (mHa)"),
        strict=True,
    ):
        for (name, one), color in zip(errors.items(), _colors(), strict=False):
            values = 1e3 * np.abs(getattr(one, key))
            values = np.maximum(values[np.isfinite(values)], 1e-6)
            bins = np.logspace(-6, 6, 97)
            axes.hist(values, bins, histtype="step", color=color, label=name)
        axes.axvline(CHEMICAL_ACCURACY_IN_MILLIHARTREE, color="0.6", lw=0.8, ls=":")
        axes.set(xscale="log", xlabel=label, ylabel="samples")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize="small", loc="outside right upper")
    return figure


def _colors() -> tuple[str, ...]:
    return COLORS * 4


def _worse_than_chemical_accuracy(energy: np.ndarray) -> float:
    return float(np.sum(energy > CHEMICAL_ACCURACY_IN_MILLIHARTREE))


def _of_finite(function: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(function(finite)) if len(finite) else float("nan")


def _by_family(
    families: np.ndarray, row: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, dict[str, float]]:
    rows = {str(name): row(families == name) for name in np.unique(families)}
    if len(rows) > 1:
        rows[ALL] = row(np.ones(len(families), dtype=bool))
    return rows


def markdown_table(
    heads: tuple[str, ...],
    tables: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    kind: str = "family",
) -> list[str]:
    """Lines of a table with a row for each family, or other kind of part, of each functional.

    A dash is for what is not a number: a functional may have no kinetic energy density.
    """
    lines = [f"| functional | {kind} | " + " | ".join(heads) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(heads))
    for name, table in tables.items():
        for part, row in table.items():
            values = " | ".join(_number(value) for value in row.values())
            lines.append(f"| {name} | {part} | {values} |")
    return lines


def _number(value: float | None) -> str:
    """Four digits, and a dash for what there is none of, which is null in a file."""
    return "–" if value is None or np.isnan(value) else f"{value:.4g}"


def _columns(errors: SampleErrors | OptimizationErrors) -> dict[str, list]:
    """All entries as lists, in hartree."""
    return {
        entry.name: getattr(errors, entry.name).tolist() for entry in dataclasses.fields(errors)
    }
