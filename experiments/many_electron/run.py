"""One functional for all molecules of a rung: data, training, evaluation and report by one command.

Run `python experiments/many_electron/run.py four-electron`; a run that was stopped goes on.
Training has the stages in `training/RUNG`, each of which begins where the one before ended. With
`--functional NAME` nothing is trained: another functional, by its name or folder, is judged on the
same geometries, on other ones if there is another `--test-seed`.
"""

import argparse
import dataclasses
import logging
import os
import time
from pathlib import Path

# Before JAX is: it logs every program it keeps.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax

import kineticnet_jax as kn
from kineticnet_jax.data.config import load_config
from kineticnet_jax.data.run import generate
from kineticnet_jax.evaluate import (
    GUESSES,
    curvatures,
    grid_errors,
    optimization_errors,
    sample_errors,
)
from kineticnet_jax.evaluation_report import write_report
from kineticnet_jax.files import write_json
from kineticnet_jax.train.config import load_train_config
from kineticnet_jax.train.loop import BEST, Progress, train
from kineticnet_jax.train.moment_config import MomentTrainConfig
from kineticnet_jax.train.moment_loop import train_moments
from kineticnet_jax.train.plot import write_training_figure

HERE = Path(__file__).parent
STAGES = {
    folder.name: sorted(folder.glob("*.toml")) for folder in sorted((HERE / "training").iterdir())
}
BASELINES = ("tf+vw", "lkt")


def main() -> None:
    """Runs everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rung", choices=STAGES)
    parser.add_argument("--out", type=Path, help="folder of the run, by default the rung")
    parser.add_argument("--functional", help="name or folder of one to judge; nothing is trained")
    parser.add_argument("--test-seed", type=int, help="of geometries and potentials to test on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, force=True)
    jax.config.update("jax_enable_x64", True)
    out = options.out or Path(options.rung)
    out.mkdir(exist_ok=True, parents=True)
    # A run that goes on has the same programs.
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    seconds = {}

    start = time.perf_counter()
    test_config = load_config(HERE / "test" / f"{options.rung}.toml")
    if options.test_seed is not None:
        test_config = dataclasses.replace(test_config, seed=options.test_seed)
    generate(test_config, out / f"test-{test_config.seed}.h5")
    test = kn.Dataset(out / f"test-{test_config.seed}.h5")
    if options.functional is None:
        generate(load_config(HERE / f"{options.rung}.toml"), out / "data.h5")
    seconds["data"] = time.perf_counter() - start

    start = time.perf_counter()
    if options.functional is None:
        functional: kn.Functional = _trained(options.rung, kn.Dataset(out / "data.h5"), out)
    else:
        functional = kn.load_functional(options.functional)
    seconds["training"] = time.perf_counter() - start

    start = time.perf_counter()
    own = {options.rung: functional}
    functionals = own | {name: kn.load_functional(name) for name in BASELINES}
    fixed = {name: sample_errors(one, test) for name, one in functionals.items()}
    optimized = optimization_errors(own, test, GUESSES[:2], callback=_show_geometries)
    write_report(out, options.rung, fixed, optimized, {})
    grids = {options.rung: grid_errors(functional, test)}
    lowest = {options.rung: curvatures(functional, test)}
    write_report(out, options.rung, fixed, optimized, grids, lowest)
    others = {name: functionals[name] for name in BASELINES}
    optimized |= optimization_errors(others, test, GUESSES[:1], callback=_show_geometries)
    write_report(out, options.rung, fixed, optimized, grids, lowest)
    seconds["evaluation"] = time.perf_counter() - start
    write_json(out / "seconds.json", seconds)
    print(f"report in {out / 'report.md'}")
    print(", ".join(f"{key} {value:.0f} s" for key, value in seconds.items()))


def _trained(rung: str, dataset: kn.Dataset, out: Path) -> kn.Functional:
    """The functional of the last stage; that of the first may begin with one beside this script."""
    functional: kn.Functional | None = None
    for number, path in enumerate(STAGES[rung], start=1):
        config = load_train_config(path)
        folder = out / f"stage-{number}"
        if isinstance(config, MomentTrainConfig):
            functional = train_moments(config, dataset, folder, _show)
            write_training_figure(folder)
            continue
        if number > 1:
            config = dataclasses.replace(config, start=str(out / f"stage-{number - 1}" / BEST))
        elif config.start:
            config = dataclasses.replace(config, start=os.path.relpath(HERE / config.start))
        functional = train(config, dataset, folder, _show)
        write_training_figure(folder)
    assert functional is not None
    return functional


def _show(progress: Progress) -> None:
    if progress.step % 50 == 0:
        metrics = progress.metrics
        found = "".join(
            f", {name} {metrics[name]:.3f}" for name in ("curvature", "visited") if name in metrics
        )
        print(
            f"step {progress.step}: T_P {metrics['energy']:.3f}, potential "
            f"{metrics['potential']:.3f} mHa{found}, {metrics['samples_per_second']:.0f} samples/s",
            flush=True,
        )


def _show_geometries(done: int) -> None:
    if done % 5 == 0:
        print(f"densities of {done} geometries optimized", flush=True)


if __name__ == "__main__":
    main()
