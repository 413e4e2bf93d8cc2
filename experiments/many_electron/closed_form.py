"""More than two electrons, first rung: a closed-form functional for one molecule, with cuts.

Run `python experiments/many_electron/closed_form.py lih` or `h2o`. Data, least squares on energies
and potentials, curvature cuts at the Kohn-Sham densities of some training geometries, and the
report on geometries that were never seen: errors at fixed densities and after optimization, beside
tf+vw and lkt, and the lowest curvature of the total energy at the Kohn-Sham density, before the
cuts and after.
"""

import argparse
import logging
import time
from pathlib import Path

import jax

import kineticnet_jax as kn
from kineticnet_jax.curvature import CutSettings, curvature_cuts
from kineticnet_jax.data.config import load_config
from kineticnet_jax.data.run import generate
from kineticnet_jax.evaluate import (
    GUESSES,
    curvatures,
    grid_errors,
    kohn_sham_density,
    optimization_errors,
    sample_errors,
)
from kineticnet_jax.evaluation_report import write_report
from kineticnet_jax.fit import FitSettings, fit_moments
from kineticnet_jax.functionals.storage import save_functional

HERE = Path(__file__).parent
BASELINES = ("tf+vw", "lkt")


def main() -> None:
    """Everything for one molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecule", choices=("lih", "h2o"))
    parser.add_argument("--out", type=Path, help="folder of the run, by default the molecule")
    parser.add_argument("--directions", type=int, default=64, help="of the potential of a sample")
    parser.add_argument("--kernel", type=float, default=1e-6, help="weight of second derivatives")
    parser.add_argument("--slack", type=float, default=0.3, help="of the squared error")
    parser.add_argument("--rounds", type=int, default=16, help="of cuts at most")
    parser.add_argument("--cuts", type=int, default=8, help="training geometries of the cuts")
    options = parser.parse_args()
    out = options.out or Path(options.molecule)
    logging.basicConfig(level=logging.ERROR, force=True)
    jax.config.update("jax_enable_x64", True)
    out.mkdir(exist_ok=True, parents=True)
    config = load_config(HERE / f"{options.molecule}.toml")
    data = out / "data.h5"
    generate(config, data)
    dataset = kn.Dataset(data)

    functional, without = out / "functional", out / "without-cuts"
    if not functional.exists():
        fitted(dataset, options, without, functional)
    cut, fit = (kn.load_functional(str(folder)) for folder in (functional, without))

    test = dataset.select("test")
    lowest = {
        name: curvatures(one, test) for name, one in (("closed form", cut), ("without cuts", fit))
    }
    named = {"closed form": cut, "without cuts": fit}
    named |= {name: kn.load_functional(name) for name in BASELINES}
    fixed = {name: sample_errors(one, test) for name, one in named.items()}
    grids = {"closed form": grid_errors(cut, test)}
    write_report(out, config.name, fixed, {}, grids, lowest)
    optimized = optimization_errors({"closed form": cut}, test, GUESSES, callback=_show)
    rest = {name: one for name, one in named.items() if name != "closed form"}
    optimized |= optimization_errors(rest, test, GUESSES[:2])
    write_report(out, config.name, fixed, optimized, grids, lowest)
    print(f"report in {out / 'report.md'}")


def fitted(
    dataset: kn.Dataset, options: argparse.Namespace, without: Path, functional: Path
) -> None:
    """Fits, cuts, and saves the functional without cuts and the one with them."""
    start = time.perf_counter()
    settings = FitSettings(
        directions=options.directions, kernel_weight=options.kernel, slack=options.slack
    )
    fit = fit_moments(dataset, settings=settings)
    print(f"fitted to {fit.samples} samples in {time.perf_counter() - start:.0f} s", flush=True)
    save_functional(fit.functional, without)
    start = time.perf_counter()
    references = [
        kohn_sham_density(dataset, geometry)
        for geometry in dataset.select("train").geometries[: options.cuts]
    ]
    cuts = CutSettings(rounds=options.rounds)
    cut, rounds = curvature_cuts(fit, references, dataset.config.xc, cuts)
    for values in rounds:
        print("lowest curvatures:", " ".join(f"{value:.2f}" for value in values), flush=True)
    print(f"{len(rounds) - 1} rounds of cuts in {time.perf_counter() - start:.0f} s", flush=True)
    save_functional(cut.functional, functional)


def _show(done: int) -> None:
    print(f"densities of {done} geometries optimized", flush=True)


if __name__ == "__main__":
    main()
