"""The two-electron functional: data, training, evaluation and report by one command.

Run `python experiments/two_electron/run.py --out two-electron`; a run that was stopped goes on.
With `--smoke` everything is small and takes a few minutes. With `--functional two-electron` nothing
is trained: the functional that comes with the package is evaluated again, on other geometries and
potentials if there is another `--test-seed`.
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
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline

import kineticnet_jax as kn
from kineticnet_jax.colors import BLUE, GREY
from kineticnet_jax.data.config import DataConfig, load_config
from kineticnet_jax.data.generate import ground_state
from kineticnet_jax.data.run import generate
from kineticnet_jax.evaluate import (
    BASELINES,
    GUESSES,
    grid_errors,
    optimization_errors,
    sample_errors,
)
from kineticnet_jax.evaluation_report import write_report
from kineticnet_jax.files import write_json
from kineticnet_jax.report import plot_dissociation, plot_solution
from kineticnet_jax.train.config import TrainConfig, load_train_config
from kineticnet_jax.train.loop import BEST, Progress, train
from kineticnet_jax.train.plot import write_training_figure
from kineticnet_jax.units import BOHR_IN_ANGSTROM

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
SHORTEST, LONGEST = 0.4, 3.0
"""Bond lengths of H2 in Å between which the dissociation curve is computed."""


def main() -> None:
    """Runs everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("two-electron"), help="folder of the run")
    parser.add_argument(
        "--functional", help="name or folder of one to evaluate; nothing is trained"
    )
    parser.add_argument("--test-seed", type=int, help="of geometries and potentials to test on")
    parser.add_argument("--devices", type=int, default=1, help="cores or GPUs to train on")
    parser.add_argument("--smoke", action="store_true", help="everything small, for a quick look")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, force=True)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", options.devices)
    options.out.mkdir(exist_ok=True, parents=True)
    # A run that goes on has the same programs.
    jax.config.update("jax_compilation_cache_dir", str(options.out / "compiled"))
    test_config = load_config(CONFIGS / "two-electron-test.toml")
    if options.test_seed is not None:
        test_config = dataclasses.replace(test_config, seed=options.test_seed)
    guesses, points, baselines, workers, level = GUESSES, 100, BASELINES, None, 3
    if options.smoke:
        test_config = _smaller(test_config, 2)
        guesses, points, baselines, workers, level = GUESSES[:1], 3, ("tf", "vw"), 1, 1

    start = time.perf_counter()
    test_data = options.out / f"test-{test_config.seed}.h5"
    generate(test_config, test_data, workers)
    seconds = {"data": time.perf_counter() - start, "training": 0.0}
    functional, name = options.functional, "two-electron"
    if functional is None:
        functional = trained(options, workers, seconds)
    functional = kn.load_functional(functional)

    start = time.perf_counter()
    test = kn.Dataset(test_data)
    functionals = {name: functional} | {one: kn.load_functional(one) for one in baselines}
    fixed = {key: sample_errors(one, test) for key, one in functionals.items()}
    # Optimizations take longer: what is known already is there to be read.
    grids = {name: grid_errors(functional, test)}
    write_report(options.out, "Two electrons", fixed, {}, grids)

    def show_geometries(done: int) -> None:
        print(f"densities optimized: {done} of {len(test.geometries)} geometries", flush=True)

    optimized = optimization_errors(
        {name: functional}, test, guesses, grid_level=level, callback=show_geometries
    )
    write_report(options.out, "Two electrons", fixed, optimized, grids)
    optimized |= optimization_errors(
        {one: functionals[one] for one in baselines}, test, guesses[:1], grid_level=level
    )
    write_report(options.out, "Two electrons", fixed, optimized, grids)
    curve = dissociation(functional, test_config, points, level)
    write_json(options.out / "curve.json", curve)
    figure = plot_dissociation(
        np.array(curve["length_angstrom"]),
        {"learned functional, optimized density": np.array(curve["learned"])},
        np.array(curve["kohn_sham"]),
    )
    figure.savefig(options.out / "curve.png", dpi=150)
    for file, figure in bond_figures(functional, test_config, level).items():
        figure.savefig(options.out / file, dpi=150)
    seconds["evaluation"] = time.perf_counter() - start
    write_json(options.out / "seconds.json", seconds)
    print(f"report in {options.out / 'report.md'}")
    print(", ".join(f"{key} {value:.0f} s" for key, value in seconds.items()))
    print(
        f"H2: second difference within {curve['second_difference_mha']:.3f} mHa of Kohn–Sham's, "
        f"minimum {curve['minimum_error_angstrom']:+.4f} Å from its own"
    )


def trained(options: argparse.Namespace, workers: int | None, seconds: dict[str, float]) -> Path:
    """The folder of the best functional; its times are added to `seconds`."""
    data_config = load_config(CONFIGS / "two-electron.toml")
    config = load_train_config(HERE / "train.toml")
    if options.smoke:
        data_config, config = _smaller(data_config), _smaller_training(config)
    begin = time.perf_counter()
    data, run = options.out / "train.h5", options.out / "train"
    generate(data_config, data, workers)
    seconds["data"] += time.perf_counter() - begin
    begin = time.perf_counter()
    train(config, kn.Dataset(data), run, _show, options.devices)
    write_training_figure(run)
    seconds["training"] += time.perf_counter() - begin
    print(f"functional in {run / BEST}", flush=True)
    return run / BEST


def _smaller(config: DataConfig, geometries: int = 10) -> DataConfig:
    families = tuple(
        dataclasses.replace(family, geometries=geometries)
        for family in config.families
        if family.name == "H2"
    )
    return dataclasses.replace(config, families=families, potentials_per_geometry=3)


def _smaller_training(config: TrainConfig) -> TrainConfig:
    network = dataclasses.replace(config.network, size="tiny", filters=None, interactions=0)
    return dataclasses.replace(
        config,
        steps=20,
        network=network,
        families={},
        log_every=10,
        validate_every=20,
        checkpoint_every=10,
    )


def dissociation(
    functional: kn.Functional, config: DataConfig, points: int, level: int
) -> dict[str, list[float] | float]:
    """The curve of H2 by density optimization and by Kohn–Sham; energies in hartree."""
    lengths = np.linspace(SHORTEST, LONGEST, points)
    learned, exact = [], []
    for length in lengths:
        molecule = kn.Molecule.from_string(f"2\n\nH 0 0 0\nH 0 0 {length}")
        system = kn.prepare(molecule, config.basis, config.density_basis, level)
        learned.append(kn.optimize_density(system, functional, config.xc).energy)
        exact.append(ground_state(config, molecule, level).energy)
    deviation = np.diff(learned, 2) - np.diff(exact, 2)
    minima = [_minimum(lengths, np.array(values)) for values in (learned, exact)]
    return {
        "length_angstrom": lengths.tolist(),
        "learned": learned,
        "kohn_sham": exact,
        "second_difference_mha": float(1e3 * np.max(np.abs(deviation))),
        "minimum_error_angstrom": float(minima[0] - minima[1]),
    }


def _minimum(x: np.ndarray, y: np.ndarray) -> float:
    """Where a spline through a curve is lowest."""
    spline = CubicSpline(x, y)
    candidates = np.append(spline.derivative().roots(extrapolate=False), x[[0, -1]])
    return float(candidates[np.argmin(spline(candidates))])


def bond_figures(functional: kn.Functional, config: DataConfig, level: int) -> dict[str, Figure]:
    """Density, optimization path and potential of H2 at its bond length, by file name."""
    molecule = kn.Molecule.from_string("2\n\nH 0 0 0\nH 0 0 0.74")
    system = kn.prepare(molecule, config.basis, config.density_basis, level)
    solution = kn.optimize_density(system, functional, config.xc, "hcore")
    exact = kn.OrbitalDensity.from_kohn_sham(ground_state(config, molecule, level))
    return {
        "bond.png": plot_solution(system, solution, exact),
        "potential.png": plot_potential(functional, system, solution.density),
    }


def plot_potential(functional: kn.Functional, system: kn.System, density: kn.SqrtDensity) -> Figure:
    """(δT_s/δn) √n along the bond, the part of it that the basis can tell, beside the exact one.

    The constant in the potential, which means nothing for a fixed number of electrons, is chosen so
    that ∫n δT_s/δn dr is exact.
    """
    grid, basis = system.grid, system.density_basis
    c = density.normalized(system).coefficients

    def energy(c: jax.Array) -> jax.Array:
        values = (c @ basis.on_grid).reshape(4, -1)
        sampled = kn.GridDensity(values[0] ** 2, 2 * (values[0] * values[1:]).T)
        return functional(system.molecule, grid, sampled)

    on_axis = np.hypot(grid.points[:, 0], grid.points[:, 1]) < 1e-8
    middle = np.mean(system.molecule.positions[:, 2])
    on_axis &= np.abs(grid.points[:, 2] - middle) < 5
    points = np.flatnonzero(on_axis)[np.argsort(grid.points[on_axis, 2])]
    z = (grid.points[points, 2] - middle) * BOHR_IN_ANGSTROM
    functions = basis.on_grid.matrix[:, points]

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    exact, learned = basis.kinetic @ c, 0.5 * jax.grad(energy)(c)
    learned += basis.overlap @ c * (c @ (exact - learned)) / system.n_electrons
    for gradient, label, color, width in (
        (exact, "exact", GREY, 3),
        (learned, "learned functional", BLUE, 1),
    ):
        axes.plot(
            z,
            jnp.linalg.solve(basis.overlap, gradient) @ functions,
            color=color,
            lw=width,
            label=label,
        )
    for nucleus in system.molecule.positions[:, 2]:
        axes.axvline((nucleus - middle) * BOHR_IN_ANGSTROM, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="position along the bond (Å)", ylabel="(δT$_s$/δn) √n (Ha bohr$^{-3/2}$)")
    axes.legend(frameon=False)
    return figure


def _show(progress: Progress) -> None:
    if progress.step % 100 == 0:
        metrics = progress.metrics
        print(
            f"step {progress.step}: T_s {metrics['energy']:.3f}, potential "
            f"{metrics['potential']:.3f} mHa, {metrics['samples_per_second']:.0f} samples/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
