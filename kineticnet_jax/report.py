"""Figures of densities and optimizations."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kineticnet_jax.basis import evaluate_with_gradient
from kineticnet_jax.colors import BLUE, COLORS, GREY, ORANGE
from kineticnet_jax.density import OrbitalDensity, SqrtDensity
from kineticnet_jax.functionals.base import LocalFunctional
from kineticnet_jax.grid import Grid
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Solution
from kineticnet_jax.system import System, cast, functions_on_grid
from kineticnet_jax.types import Points
from kineticnet_jax.units import BOHR_IN_ANGSTROM, CHEMICAL_ACCURACY_IN_MILLIHARTREE

MARGIN = 3.0
"""Space around the nuclei in a picture, in bohr."""

SampledDensity = SqrtDensity | OrbitalDensity


def plot_solution(
    system: System, solution: Solution, reference: OrbitalDensity | None = None
) -> Figure:
    """The optimized density beside the path of the optimization.

    Args:
        system: the molecule.
        solution: from `optimize_density`.
        reference: density to compare with, such as that of a Kohn–Sham calculation.

    Returns:
        A figure: the density along the axis of an atom or linear molecule, or in the plane of the
        three atoms that span it best; and energy and gradient norm against the step.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if _is_linear(system.molecule):
        plot_density_line(left, system, solution.density, reference)
    else:
        plot_density_plane(left, system, solution.density)
    plot_convergence(right, solution)
    return figure


def plot_density_line(
    axes: Axes, system: System, density: SampledDensity, reference: SampledDensity | None = None
) -> None:
    """Density along the axis of an atom or a linear molecule, on a logarithmic scale."""
    points, x = _line(axes, system)
    if reference is not None:
        values = np.asarray(reference.at(system, points))
        axes.semilogy(x, values, color=GREY, lw=3, alpha=0.5, label="Kohn–Sham")
    axes.semilogy(x, np.asarray(density.at(system, points)), color=BLUE, label="orbital-free")
    axes.set(ylabel="density (bohr⁻³)")
    axes.legend(frameon=False)


def plot_density_plane(axes: Axes, system: System, density: SampledDensity) -> None:
    """Density in the plane of the molecule as filled contours on a logarithmic scale."""
    points, x, y = _in_plane(axes, system, "white")
    levels = np.logspace(-4, 2, 19)
    n = np.asarray(density.at(system, points)).reshape(len(y), len(x))
    values = np.clip(n, levels[0], levels[-1])
    filled = axes.contourf(x, y, values, levels, norm=LogNorm(), cmap="cividis")
    colorbar = axes.figure.colorbar(filled, ax=axes, ticks=np.logspace(-4, 2, 7))
    colorbar.set_label("density (bohr⁻³)")


def plot_density_difference(
    axes: Axes, system: System, density: SampledDensity, reference: SampledDensity
) -> None:
    """A density minus another one, along the axis or in the plane as in `plot_solution`.

    Args:
        axes: where to plot.
        system: the molecule.
        density: such as an optimized one.
        reference: what is subtracted, such as that of a Kohn–Sham calculation.
    """
    label = "density - reference (bohr⁻³)"
    if _is_linear(system.molecule):
        points, x = _line(axes, system)
        difference = np.asarray(density.at(system, points)) - reference.at(system, points)
        axes.axhline(0, color=GREY, lw=0.7)
        axes.plot(x, difference, color=BLUE)
        axes.set(ylabel=label)
        return
    points, x, y = _in_plane(axes, system, "black")
    difference = np.asarray(density.at(system, points)) - reference.at(system, points)
    # The cusps, where a thousandth of the density is more than anything else, would hide the rest.
    largest = max(float(np.percentile(np.abs(difference), 99)), 1e-12)
    filled = axes.contourf(
        x,
        y,
        np.clip(difference, -largest, largest).reshape(len(y), len(x)),
        np.linspace(-largest, largest, 21),
        cmap="PuOr",
    )
    ticks = np.linspace(-largest, largest, 5)
    axes.figure.colorbar(filled, ax=axes, ticks=ticks, format="%.2g").set_label(label)


def plot_kinetic_energy_density(
    axes: Axes,
    system: System,
    functionals: dict[str, LocalFunctional],
    density: SampledDensity,
    reference: OrbitalDensity | None = None,
) -> None:
    """Kinetic energy densities τ along the axis of an atom or a linear molecule.

    Args:
        axes: where to plot.
        system: the molecule.
        functionals: by name, all at the same density.
        density: this density.
        reference: Kohn–Sham orbitals, whose τ = ½ Σ_i f_i |∇φ_i|² is shown beside.

    Raises:
        InputError: for a functional without a kinetic energy density.
    """
    points, x = _line(axes, system)
    highest = 0.0
    if reference is not None:
        slopes = evaluate_with_gradient(reference.basis, reference.positions, points)[:, 1:]
        tau = 0.5 * jnp.sum(jnp.einsum("mi,mxg->xig", reference.orbitals, slopes) ** 2, (0, 1))
        axes.semilogy(x, np.asarray(tau), color=GREY, lw=3, alpha=0.5, label="Kohn–Sham")
        highest = float(jnp.max(tau))
    there = _with_points(system, points)
    sampled = density.on_grid(there)
    for (name, functional), color in zip(functionals.items(), COLORS, strict=False):
        tau = functional.kinetic_energy_density(system.molecule, there.grid, sampled)[-len(x) :]
        axes.semilogy(x, np.asarray(tau), color=color, label=name)
        highest = max(highest, float(jnp.max(tau)))
    # That of an orbital vanishes where the orbital is flat: down there is nothing to be seen.
    axes.set(ylabel="kinetic energy density (Ha bohr⁻³)", ylim=(1e-6 * highest, 3 * highest))
    axes.legend(frameon=False)


def plot_dissociation(
    lengths: Float[np.ndarray, "lengths"],
    energies: dict[str, Float[np.ndarray, "lengths"]],
    reference: Float[np.ndarray, "lengths"],
) -> Figure:
    """Energy curves of a bond and, below, how far they are from the Kohn–Sham one.

    Args:
        lengths: of the bond in Å.
        energies: total energies in hartree by the name of the functional.
        reference: those of Kohn–Sham.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(lengths, reference, color=GREY, lw=3, alpha=0.5, label="Kohn–Sham")
    accuracy = CHEMICAL_ACCURACY_IN_MILLIHARTREE
    below.axhspan(-accuracy, accuracy, color="0.9", label="chemical accuracy")
    for (name, values), color in zip(energies.items(), COLORS, strict=False):
        above.plot(lengths, values, color=color, label=name)
        below.plot(lengths, 1e3 * (np.asarray(values) - reference), color=color)
    above.set(ylabel="total energy (Ha)")
    above.legend(frameon=False)
    below.set(xlabel="bond length (Å)", ylabel="difference (mHa)")
    below.legend(frameon=False)
    return figure


def plot_convergence(axes: Axes, solution: Solution) -> None:
    """Energy above the lowest met (Ha) and gradient norm (Ha^½) against the step."""
    energy = np.asarray(solution.history.energy)
    above = energy - np.min(energy)
    above = np.where(above > 0, above, np.nan)
    steps = np.arange(len(energy))
    axes.semilogy(steps, above, "o-", color=BLUE, ms=3, label="energy above its minimum (Ha)")
    norm = solution.history.gradient_norm
    axes.semilogy(steps, norm, "s-", color=ORANGE, ms=3, label="gradient norm (Ha$^{1/2}$)")
    axes.set(xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def _line(axes: Axes, system: System) -> tuple[Points, Float[np.ndarray, "points"]]:
    """Points on the axis of the molecule and their positions in Å; marks the nuclei."""
    origin, axis, along = _axis(np.asarray(system.molecule.positions))
    x = np.linspace(along.min() - MARGIN, along.max() + MARGIN, 801)
    for position, symbol in zip(along * BOHR_IN_ANGSTROM, system.molecule.symbols, strict=True):
        axes.axvline(position, color=GREY, lw=0.7, ls=":", zorder=0)
        axes.annotate(symbol, (position, 1.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xlabel="position along the axis (Å)")
    return jnp.asarray(origin + x[:, None] * axis, dtype=system.dtype), x * BOHR_IN_ANGSTROM


def _in_plane(
    axes: Axes, system: System, color: str
) -> tuple[Points, Float[np.ndarray, "columns"], Float[np.ndarray, "rows"]]:
    """Points in the plane of the molecule, row by row, and its axes in Å; marks the nuclei."""
    positions = np.asarray(system.molecule.positions)
    origin, first, second = _plane(positions)
    flat = (positions - origin) @ np.stack([first, second], axis=1)
    low, high = flat.min(axis=0) - MARGIN, flat.max(axis=0) + MARGIN
    x, y = (np.linspace(low[i], high[i], 161) for i in (0, 1))
    points = origin + x[None, :, None] * first + y[:, None, None] * second
    distance = np.abs((positions - origin) @ np.cross(first, second))
    for (u, v), symbol, away in zip(flat, system.molecule.symbols, distance, strict=True):
        if away < 0.1:
            axes.annotate(symbol, (u * BOHR_IN_ANGSTROM, v * BOHR_IN_ANGSTROM), color=color)
    axes.set(xlabel="x in the plane (Å)", ylabel="y in the plane (Å)", aspect="equal")
    flat_points = jnp.asarray(points.reshape(-1, 3), dtype=system.dtype)
    return flat_points, x * BOHR_IN_ANGSTROM, y * BOHR_IN_ANGSTROM


def _with_points(system: System, points: Points) -> System:
    """The system with further points that have no weight, at the end of its grid."""
    weights = jnp.concatenate([system.grid.weights, jnp.zeros(len(points), system.dtype)])
    everywhere = jnp.concatenate([system.grid.points, points])
    basis = system.density_basis
    positions = jnp.asarray(system.molecule.positions)
    on_grid = functions_on_grid(basis.functions, positions, everywhere)
    return cast(
        replace(
            system,
            grid=Grid(everywhere, weights),
            density_basis=replace(basis, on_grid=on_grid),
        ),
        system.dtype,
    )


def _axis(
    positions: Float[np.ndarray, "atoms 3"],
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "atoms"]]:
    """Centre, direction of the longest extent (z for an atom), and positions along it."""
    origin = positions.mean(axis=0)
    if len(positions) == 1:
        return origin, np.array([0.0, 0.0, 1.0]), np.zeros(1)
    direction = np.linalg.svd(positions - origin)[2][0]
    along = (positions - origin) @ direction
    if along[0] > along[-1]:
        direction, along = -direction, -along
    return origin, direction, along


def _plane(
    positions: Float[np.ndarray, "atoms 3"],
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """A point and two orthonormal directions of the plane of three atoms.

    The first atom, its nearest neighbour, and the atom farthest from the line through them. The
    first direction is that of the largest extent of the atoms in the plane.
    """
    vectors = positions - positions[0]
    lengths = np.linalg.norm(vectors, axis=1)
    lengths[0] = np.inf
    nearest = int(np.argmin(lengths))
    bond = vectors[nearest] / lengths[nearest]
    heights = np.linalg.norm(np.cross(vectors, bond), axis=1)
    corners = positions[[0, nearest, int(np.argmax(heights))]]
    first, second = np.linalg.svd(corners - corners.mean(axis=0))[2][:2]
    if vectors[nearest] @ second > 0:
        second = -second
    return corners.mean(axis=0), first, second


def _is_linear(molecule: Molecule) -> bool:
    positions = np.asarray(molecule.positions)
    origin, axis, along = _axis(positions)
    return bool(np.allclose(positions, origin + along[:, None] * axis, atol=1e-3))
