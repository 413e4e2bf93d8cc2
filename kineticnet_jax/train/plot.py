"""The picture of a training run."""

from pathlib import Path

from matplotlib.figure import Figure

from kineticnet_jax.colors import COLORS
from kineticnet_jax.files import complete_file
from kineticnet_jax.train.metrics import METRICS, VALIDATION, read_table
from kineticnet_jax.units import CHEMICAL_ACCURACY_IN_MILLIHARTREE


def plot_training(folder: Path) -> Figure:
    """Errors of a run against the step: on training batches, and on the validation split.

    Args:
        folder: of the run.
    """
    metrics, validation = (read_table(folder / name) for name in (METRICS, VALIDATION))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in metrics]
    for name, label, color in (
        ("energy", "|ΔT$_s$|", COLORS[0]),
        ("tau", "kinetic energy density", COLORS[4]),
        ("potential", "potential, as energy", COLORS[1]),
        ("curvature", "curvature", COLORS[2]),
        ("visited", "visited densities", COLORS[3]),
    ):
        values = [row.get(name, 0) for row in metrics]
        if not any(values):
            # It has no weight and is not measured.
            continue
        left.semilogy(steps, values, color=color, lw=0.8, label=label)
    left.set(title="training batches", xlabel="step", ylabel="mean error (mHa)")
    families = list(dict.fromkeys(row["family"] for row in validation))
    for family, color in zip(families, COLORS * (len(families) // len(COLORS) + 1), strict=False):
        rows = [row for row in validation if row["family"] == family]
        x = [row["step"] for row in rows]
        right.semilogy(x, [row["energy"] for row in rows], "o-", color=color, ms=3, label=family)
        right.semilogy(x, [row["potential"] for row in rows], "--", color=color, lw=1)
    right.set(
        title="validation: T$_s$ (lines), potential (dashes)",
        xlabel="step",
        ylabel="mean error (mHa)",
    )
    for axes in (left, right):
        axes.axhline(CHEMICAL_ACCURACY_IN_MILLIHARTREE, color="0.6", lw=0.8, ls=":")
        axes.legend(frameon=False, fontsize="small")
    return figure


def write_training_figure(folder: Path) -> None:
    """`plot_training` as training.png in the folder of the run."""
    with complete_file(folder / "training.png") as temporary:
        plot_training(folder).savefig(temporary, dpi=150)
