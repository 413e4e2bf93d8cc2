"""Figures and volumetric data of densities and optimizations."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kineticnet_jax.colors import BLUE, GREY, ORANGE
from kineticnet_jax.density import OrbitalDensity, SqrtDensity
from kineticnet_jax.files import complete_file
from kineticnet_jax.molecule import Molecule
from kineticnet_jax.optimize import Solution
from kineticnet_jax.system import System
from kineticnet_jax.units import BOHR_IN_ANGSTROM

MARGIN = 3.0
"""Space around the nuclei in a picture, in bohr."""

CUBE_MARGIN = 6.0
"""Space around the nuclei in a cube file, in bohr: the density there is below 1e-5 of its peak."""

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
    positions = np.asarray(system.molecule.positions)
    origin, axis, along = _axis(positions)
    x = np.linspace(along.min() - MARGIN, along.max() + MARGIN, 801)
    points = jnp.asarray(origin + x[:, None] * axis, dtype=system.dtype)
    if reference is not None:
        values = np.asarray(reference.at(system, points))
        axes.semilogy(x * BOHR_IN_ANGSTROM, values, color=GREY, lw=3, alpha=0.5, label="Kohn–Sham")
    values = np.asarray(density.at(system, points))
    axes.semilogy(x * BOHR_IN_ANGSTROM, values, color=BLUE, label="orbital-free")
    for position, symbol in zip(along * BOHR_IN_ANGSTROM, system.molecule.symbols, strict=True):
        axes.axvline(position, color=GREY, lw=0.7, ls=":")
        axes.annotate(symbol, (position, 1.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xlabel="position along the axis (Å)", ylabel="density (bohr⁻³)")
    axes.legend(frameon=False)


def plot_density_plane(axes: Axes, system: System, density: SampledDensity) -> None:
    """Density in the plane of the molecule as filled contours on a logarithmic scale."""
    positions = np.asarray(system.molecule.positions)
    origin, first, second = _plane(positions)
    flat = (positions - origin) @ np.stack([first, second], axis=1)
    low, high = flat.min(axis=0) - MARGIN, flat.max(axis=0) + MARGIN
    x, y = (np.linspace(low[i], high[i], 161) for i in (0, 1))
    points = origin + x[:, None, None] * first + y[None, :, None] * second
    n = density.at(system, jnp.asarray(points.reshape(-1, 3), dtype=system.dtype))
    levels = np.logspace(-4, 2, 19)
    values = np.clip(np.asarray(n).reshape(161, 161).T, levels[0], levels[-1])
    filled = axes.contourf(
        x * BOHR_IN_ANGSTROM, y * BOHR_IN_ANGSTROM, values, levels, norm=LogNorm(), cmap="cividis"
    )
    distance = np.abs((positions - origin) @ np.cross(first, second))
    for (u, v), symbol, away in zip(flat, system.molecule.symbols, distance, strict=True):
        if away < 0.1:
            axes.annotate(symbol, (u * BOHR_IN_ANGSTROM, v * BOHR_IN_ANGSTROM), color="white")
    colorbar = axes.figure.colorbar(filled, ax=axes, ticks=np.logspace(-4, 2, 7))
    colorbar.set_label("density (bohr⁻³)")
    axes.set(xlabel="x in the plane (Å)", ylabel="y in the plane (Å)", aspect="equal")


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


def write_cube(path: Path, system: System, density: SampledDensity, spacing: float = 0.2) -> None:
    """Writes the density (bohr⁻³) as a Gaussian cube file.

    Args:
        path: where to write; the file appears when it is complete.
        system: the molecule.
        density: what to write.
        spacing: distance of neighbouring voxels in bohr.
    """
    from ase import Atoms
    from ase.io.cube import write_cube as ase_write_cube

    positions = np.asarray(system.molecule.positions)
    low = positions.min(axis=0) - CUBE_MARGIN
    shape = np.ceil((positions.max(axis=0) + CUBE_MARGIN - low) / spacing).astype(int) + 1
    index = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    points = (low + spacing * index).reshape(-1, 3)
    n = density.at(system, jnp.asarray(points, dtype=system.dtype))
    atoms = Atoms(
        system.molecule.symbols,
        positions=positions * BOHR_IN_ANGSTROM,
        cell=spacing * shape * BOHR_IN_ANGSTROM,
    )
    comment = f"Electron density of {system.molecule.formula} in bohr^-3"
    with complete_file(path) as temporary, temporary.open("w") as file:
        ase_write_cube(
            file,
            atoms,
            np.asarray(n).reshape(shape),
            origin=low * BOHR_IN_ANGSTROM,
            comment=comment,
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
