"""What the claims of the KineticNet paper are worth: the functional of two electrons without each.

The last row is no claim of the paper but the other way round: an input it does not have.

Run `python experiments/two_electron/ablations.py two-electron --out ablations` after
`run.py --out two-electron`; a run that was stopped goes on. All functionals are trained for the
same number of steps, fewer than the one that is shipped, with half of its geometries in a step.
"""

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax

import kineticnet_jax as kn
from kineticnet_jax.data.config import DataConfig, load_config
from kineticnet_jax.data.dataset import GROUND_STATE_NAME
from kineticnet_jax.data.run import generate
from kineticnet_jax.evaluate import grid_errors, optimization_errors, sample_errors
from kineticnet_jax.evaluation_report import write_report
from kineticnet_jax.files import complete_file
from kineticnet_jax.train.config import TrainConfig, load_train_config
from kineticnet_jax.train.loop import train

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
SMOOTH = 1.0
"""Least width in bohr of a smooth potential."""

SMOOTHEST_CUSP = 4.0
"""Exponent of the tightest filter that is left without those that resolve cusps."""

WHOLE = "everything"


def changed_network(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The configuration with another network."""
    return dataclasses.replace(config, network=dataclasses.replace(config.network, **changes))


def without_cusp(config: TrainConfig) -> TrainConfig:
    """As many filters, none of them tight."""
    filters = config.network.filters
    assert filters is not None
    return changed_network(config, filters=dataclasses.replace(filters, last=SMOOTHEST_CUSP))


def without_potentials(config: TrainConfig) -> TrainConfig:
    """Energies and kinetic energy densities are the only labels."""
    return dataclasses.replace(config, weights=dataclasses.replace(config.weights, potential=0.0))


ABLATIONS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    WHOLE: lambda config: config,
    "ground states only": lambda config: dataclasses.replace(config, kinds=(GROUND_STATE_NAME,)),
    "smooth potentials only": lambda config: config,
    "no cusp-resolving filters": without_cusp,
    "no potential labels": without_potentials,
    "no interaction layers": lambda config: changed_network(config, interactions=0),
    "reduced gradient as input": lambda config: changed_network(config, inputs="gradient"),
}


def main() -> None:
    """Trains what is not trained yet and writes one report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of run.py, for its data")
    parser.add_argument("--out", type=Path, default=Path("ablations"), help="folder of the runs")
    parser.add_argument("--steps", type=int, default=120, help="of every training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    jax.config.update("jax_enable_x64", True)
    options.out.mkdir(exist_ok=True, parents=True)
    # Most trainings differ in their data or numbers only, not in their programs.
    jax.config.update("jax_compilation_cache_dir", str(options.out / "compiled"))
    smooth = options.out / "smooth.h5"
    generate(smooth_only(load_config(CONFIGS / "two-electron.toml")), smooth)
    base = load_train_config(HERE / "train.toml")
    families = {name: (count + 1) // 2 for name, count in base.families.items()}
    base = dataclasses.replace(base, steps=options.steps, families=families)
    functionals: dict[str, kn.Functional] = {}
    for name, change in ABLATIONS.items():
        data = smooth if name == "smooth potentials only" else options.run / "train.h5"
        folder = options.out / name.replace(" ", "-")
        functionals[name] = train(change(base), kn.Dataset(data), folder)
        # Programs of all trainings would take more memory mappings than a process may have.
        jax.clear_caches()
        print(f"{name}: trained", flush=True)
    test = kn.Dataset(options.run / "test-1.h5")
    fixed = {name: sample_errors(one, test) for name, one in functionals.items()}
    optimized = optimization_errors(functionals, test)
    grids = {WHOLE: grid_errors(functionals[WHOLE], test)}
    write_report(options.out, "Ablations", fixed, optimized, grids)
    print(f"report in {options.out / 'report.md'}")
    write_summary(options.out, options.steps)


def write_summary(folder: Path, steps: int) -> None:
    """The rows over all families as ablations.md beside this script."""
    errors = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    lines = [
        "# What the claims of the paper are worth",
        "",
        "`python experiments/two_electron/ablations.py two-electron --out ablations`: "
        f"{steps} steps of every training, errors on the test data in mHa (largest), "
        "∫|n - n_KS|/N in percent. "
        "Density optimization starts from superposed atoms.",
        "",
        "| without or with | T_s | above 1.594 | potential | converged | E, optimized | density |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ABLATIONS:
        fixed, optimized = (
            errors[part][name]["all"] for part in ("fixed_densities", "optimizations")
        )
        lines.append(
            f"| {name} | {fixed['mae']:.2f} ({fixed['largest']:.1f}) | "
            f"{fixed['above'] / fixed['samples']:.1%} | {fixed['potential_mean']:.3f} | "
            f"{optimized['converged']:.0%} | {optimized['mae']:.2f} ({optimized['largest']:.1f}) | "
            f"{100 * optimized['density_mean']:.2f} ({100 * optimized['density_largest']:.2f}) |"
        )
    with complete_file(HERE / "ablations.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def smooth_only(config: DataConfig) -> DataConfig:
    """The data with potentials of the same strengths that are wider than the nuclei's cusps."""
    potentials = tuple(
        dataclasses.replace(kind, widths=(SMOOTH, kind.widths[1])) for kind in config.potentials
    )
    return dataclasses.replace(config, potentials=potentials)


if __name__ == "__main__":
    main()
