"""Curvatures of the total energy in training: low ones are looked for, and raised.

Right energies and potentials at the densities of the data leave the second derivatives open along
directions in which these densities never move. There an optimization leaves the Kohn-Sham density.
So ground states of the training are searched for directions of low curvature every now and then,
and all that were found are among the residuals of the following steps.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from kineticnet_jax.curvature import lowest_curvatures
from kineticnet_jax.data.spaces import expand_in_functions
from kineticnet_jax.density import SqrtDensity
from kineticnet_jax.energy import total_energy
from kineticnet_jax.errors import InputError
from kineticnet_jax.files import write_arrays
from kineticnet_jax.functionals.learned import LearnedFunctional
from kineticnet_jax.grid import GridDensity
from kineticnet_jax.nn.network import Params
from kineticnet_jax.optimize import scaled_basis
from kineticnet_jax.system import prepare
from kineticnet_jax.train.groups import Group, GroupReader, over_geometries
from kineticnet_jax.train.loss import Site, cast, prepare_geometry
from kineticnet_jax.train.metrics import Table
from kineticnet_jax.train.processes import on_first, share
from kineticnet_jax.types import Scalar

CURVATURES = "curvatures.csv"
CURVATURE_NAMES = ("step", "family", "geometry", "lowest")

MILLIHARTREE_PER_UNIT = 10.0
"""Residual in mHa of a curvature that misses its goal by one: what a displacement costs along which
the energy should rise by 10 mHa."""


@dataclass(frozen=True)
class CurvatureSettings:
    """How low curvatures are looked for and raised.

    Attributes:
        weight: of their residuals; 0 leaves curvatures alone.
        every: steps between two searches.
        geometries: of each family that are searched.
        directions: of each geometry that are kept, the lowest ones.
        floor: curvatures above it are good enough.
        goal: to which those below are raised, in hartree; 1 where only T_vW counts.
        rows: directions of each family in a step.
    """

    weight: float = 0.0
    every: int = 200
    geometries: int = 2
    directions: int = 4
    floor: float = 0.2
    goal: float = 0.4
    rows: int = 4

    def check(self) -> None:
        """Finds settings that make no sense.

        Raises:
            InputError: naming what to change.
        """
        if self.weight < 0:
            raise InputError(f"weight of the curvature must not be negative, but is {self.weight}")
        for name in ("every", "geometries", "directions", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of the curvature must be at least 1")
        if not self.floor <= self.goal:
            raise InputError(
                f"floor of the curvature must not be above its goal, but they are {self.floor:g} "
                f"and {self.goal:g}"
            )


@partial(
    jax.tree_util.register_dataclass, data_fields=["group", "directions", "rest"], meta_fields=[]
)
@dataclass(frozen=True)
class Cuts:
    """Directions at ground states of some geometries of a family, one for each.

    Attributes:
        group: the geometries with one sample each.
        directions: changes of ψ as coefficients of the orthonormal functions.
        rest: curvature along them of everything that is not learned, in hartree.
    """

    group: Group
    directions: Float[Array, "geometries functions"]
    rest: Float[Array, "geometries"]

    def map_axes(self, shared: Any, batched: Any) -> "Cuts":
        """As that of a group."""
        return Cuts(self.group.map_axes(shared, batched), batched, batched)


@partial(jax.tree_util.register_dataclass, data_fields=["values", "jacobian"], meta_fields=[])
@dataclass(frozen=True)
class CurvatureRows:
    """Residuals of curvatures in mHa, and their derivatives by the parameters."""

    values: Float[Array, "*batch"]
    jacobian: Float[Array, "*batch parameters"]


def learned_curvature(
    site: Site, params: Params, x: Float[Array, "functions"], direction: Float[Array, "functions"]
) -> Scalar:
    """Second derivative of what is learned of T_s, along a change of ψ at constant N, in hartree.

    Args:
        site: the geometry.
        params: of the network.
        x: coefficients of ψ in the orthonormal functions.
        direction: of its change.
    """
    functional = replace(site.functional, params=params)
    both = expand_in_functions(site.space, jnp.stack([x, direction]).astype(float))
    psi, change = both.astype(x.dtype)

    def along(step: Scalar) -> Scalar:
        y = x + step * direction
        values = jnp.sqrt(jnp.vdot(x, x) / jnp.vdot(y, y)) * (psi + step * change)
        density = GridDensity(values[0] ** 2, 2 * (values[0] * values[1:]).T)
        return functional.remainder(site.molecule, site.grid, density)

    def slope(step: Scalar) -> Scalar:
        return jax.jvp(along, (step,), (jnp.ones_like(step),))[1]

    zero = jnp.zeros((), x.dtype)
    return jax.jvp(slope, (zero,), (jnp.ones_like(zero),))[1]


def curvature_rows(
    template: LearnedFunctional,
    settings: CurvatureSettings,
    dtype: np.typing.DTypeLike,
    params: Params,
    cuts: Cuts,
) -> CurvatureRows:
    """Residuals of all directions: zero where the curvature is at its goal or above.

    Args:
        template: the functional; its parameters are replaced.
        settings: the goal.
        dtype: precision of the functional.
        params: of the network.
        cuts: the directions.
    """
    flat, unravel = ravel_pytree(params)
    known = cast(jnp.concatenate([cuts.directions, cuts.rest[:, None]], axis=1), dtype)

    def geometry(number: Array, part: Group) -> tuple[Array, CurvatureRows]:
        site, targets = prepare_geometry(template, part, dtype)
        x = cast(targets.x[0], dtype)

        def shortfall(flat: Float[Array, "parameters"]) -> Scalar:
            learned = learned_curvature(site, unravel(flat), x, known[number, :-1])
            missing = jnp.minimum(known[number, -1] + learned - settings.goal, 0)
            return MILLIHARTREE_PER_UNIT * missing

        return number + 1, CurvatureRows(*jax.value_and_grad(shortfall)(flat))

    return over_geometries(geometry, jnp.zeros((), int), cuts.group)[1]


class CutBank:
    """The directions of low curvature found so far, kept in the folder of a run.

    Args:
        settings: how they are looked for.
        folder: of the run.
        reader: of the training samples.
        template: the functional; its parameters are replaced.
        families: that are trained.
        seed: of the geometries that are searched and of the rows of a step.
        step: at which the run begins or goes on.
    """

    def __init__(
        self,
        settings: CurvatureSettings,
        folder: Path,
        reader: GroupReader,
        template: LearnedFunctional,
        families: tuple[str, ...],
        seed: int,
        step: int,
    ):
        self.settings, self.folder, self.reader = settings, folder, reader
        self.template, self.families, self.seed = template, families, seed
        self.found: dict[str, list[tuple[int, np.ndarray, float]]] = {name: [] for name in families}
        for due in range(settings.every, step, settings.every):
            self._load(due)

    def update(self, step: int, params: Params) -> None:
        """Searches if it is time to; a search that was made before is read.

        Args:
            step: number of steps done.
            params: of the network then.
        """
        if step == 0 or step % self.settings.every:
            return
        on_first(partial(self._search, step, params))
        self._load(step)

    def draw(self, step: int) -> tuple[Cuts, ...]:
        """This process's directions for a step, the same whenever they are asked for."""
        random = np.random.default_rng([self.seed, step, 1])
        cuts = []
        for found in self.found.values():
            if not found:
                continue
            count = self.settings.rows
            chosen = random.choice(len(found), count, replace=len(found) < count)
            own = [found[i] for i in chosen[share(count)]]
            geometries, directions, rest = zip(*own, strict=True)
            first = np.array([self.reader.numbers[g][:1] for g in geometries])
            group = self.reader.read(geometries, first)
            cuts.append(Cuts(group, jnp.asarray(np.stack(directions)), jnp.asarray(rest)))
        return tuple(cuts)

    def _place(self, step: int) -> Path:
        return self.folder / f"curvatures-{step:06d}.npz"

    def _load(self, step: int) -> None:
        with np.load(self._place(step)) as content:
            for name in self.families:
                rows = zip(
                    *(content[f"{name}/{key}"] for key in ("geometry", "direction", "rest")),
                    strict=True,
                )
                self.found[name] += [
                    (int(g), direction, float(rest)) for g, direction, rest in rows
                ]

    def _search(self, step: int, params: Params) -> None:
        if self._place(step).is_file():
            return
        table = Table(self.folder / CURVATURES, CURVATURE_NAMES, step - 1)
        random = np.random.default_rng([self.seed, step, 2])
        content: dict[str, np.ndarray] = {}
        for name in self.families:
            all_of_it = np.array(self.reader.families[name])
            count = min(self.settings.geometries, len(all_of_it))
            rows = [
                row
                for geometry in random.choice(all_of_it, count, replace=False)
                for row in self._search_geometry(table, step, params, name, int(geometry))
            ]
            functions = len(self.reader.dataset.record(int(all_of_it[0])).density_transform)
            content[f"{name}/geometry"] = np.array([row[0] for row in rows], dtype=int)
            content[f"{name}/direction"] = np.array([row[1] for row in rows]).reshape(-1, functions)
            content[f"{name}/rest"] = np.array([row[2] for row in rows])
        write_arrays(self._place(step), content)

    def _search_geometry(
        self, table: Table, step: int, params: Params, family: str, geometry: int
    ) -> list[tuple[int, np.ndarray, float]]:
        """Directions of low curvature of the ground state of a geometry."""
        dataset, settings = self.reader.dataset, self.settings
        config, record = dataset.config, dataset.record(geometry)
        system = prepare(
            dataset.molecule(geometry), config.basis, config.density_basis, config.grid_level
        )
        number = self.reader.numbers[geometry][0]
        x = record.sqrt_coefficients[number]
        functional = replace(self.template, params=jax.tree.map(_double, params))
        energy = total_energy(system, functional, config.xc)
        density = SqrtDensity(jnp.asarray(record.density_transform @ x))
        values, vectors = lowest_curvatures(energy, density, settings.directions)
        table.add(
            {"step": step, "family": family, "geometry": geometry, "lowest": float(values[0])}
        )
        low = values < settings.floor
        if not low.any():
            return []
        # The functions of the record may be rotated against those of the system.
        coefficients = np.asarray(scaled_basis(system)) @ vectors[:, low] / np.sqrt(2.0)
        back = record.density_transform.T @ np.asarray(system.density_basis.overlap)
        directions = (back @ coefficients).T
        group = self.reader.read([geometry], np.array([[number]]))
        learned = _learned_curvatures(functional, group, jnp.asarray(directions))
        rest = values[low] - np.asarray(learned)
        return [(geometry, *pair) for pair in zip(directions, rest, strict=True)]


def _double(leaf: Any) -> Array:
    return jnp.asarray(leaf, dtype=float)


@jax.jit
def _learned_curvatures(
    functional: LearnedFunctional, group: Group, directions: Float[Array, "rows functions"]
) -> Float[Array, "rows"]:
    def geometry(_: None, part: Group) -> tuple[None, Float[Array, "rows"]]:
        site, targets = prepare_geometry(functional, part, float)
        curve = partial(learned_curvature, site, functional.params, targets.x[0])
        return None, jax.lax.map(curve, directions)

    return over_geometries(geometry, None, group)[1][0]
