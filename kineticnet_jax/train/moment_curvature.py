"""Curvatures of the total energy for functionals of moments, at many densities in little time.

The Hessian of everything that is not learned is made once for each density. That of what is learned
follows from the moments and their derivatives: f'' between them, and f' times their curvature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.curvature import energy_hessian
from kineticnet_jax.data.spaces import OneElectronSpace
from kineticnet_jax.density import KAPPA, initial_density
from kineticnet_jax.files import read_arrays, write_arrays
from kineticnet_jax.nn.moments import MomentNetConfig, Moments, density_moments
from kineticnet_jax.optimize import density_of, variables
from kineticnet_jax.train.moments import Tools, Whitening, moment_tools
from kineticnet_jax.train.visits import Place
from kineticnet_jax.types import PerPoint, Scalar

AT_A_TIME = 32


@dataclass(frozen=True)
class Site:
    """A density at which curvatures are looked at.

    Attributes:
        family: name of the molecule family.
        geometry: index of the geometry.
        mixture: 0 at the ground state, 1 at superposed atoms.
        space: the geometry, with the functions of √n in which the Hessian is.
        x: coefficients of ψ.
        rest: Hessian of everything but what is learned, as `energy_hessian` gives it.
        element: index of the element of every atom.
        moments: whitened, of this density.
        changes: their derivatives along the functions, whitened.
    """

    family: str
    geometry: int
    mixture: float
    space: OneElectronSpace
    x: Float[np.ndarray, "functions"]
    rest: Float[np.ndarray, "functions functions"]
    element: np.ndarray
    moments: list[np.ndarray]
    changes: list[np.ndarray]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["moments", "first", "second", "rest"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Cut:
    """A direction of low curvature.

    Attributes:
        moments: whitened, where it was found.
        first: their first derivatives along the direction.
        second: their second derivatives at constant N.
        rest: curvature of everything but what is learned, in hartree.
    """

    moments: list[Any]
    first: list[Any]
    second: list[Any]
    rest: Any


def find_sites(
    config: MomentNetConfig, place: Place, whitening: Whitening, mixtures: Sequence[float]
) -> list[Site]:
    """Densities from the ground state of a geometry to the superposition of its atoms.

    Args:
        config: which moments.
        place: the geometry.
        whitening: of the moments.
        mixtures: shares of the superposed atoms in ψ.
    """
    system, space, element = place.known.system, place.space, place.element
    with jax.enable_x64(True):
        atoms = variables(system, initial_density(system, "sad"))
        atoms = atoms * jnp.sign(jnp.vdot(place.z, atoms))
        tools = moment_tools(config, space)
        sites = []
        for mixture in mixtures:
            density = density_of(system, (1 - mixture) * place.z + mixture * atoms)
            x = variables(system, density) / jnp.sqrt(space.density.kinetic_eigenvalues + KAPPA)
            moments, changes = _derivatives(config, space, tools, x)
            sites.append(
                Site(
                    place.family,
                    place.geometry,
                    mixture,
                    space,
                    np.asarray(x),
                    np.asarray(energy_hessian(place.known, density)),
                    element,
                    whitening.of_moments(element, [np.asarray(part) for part in moments]),
                    whitening.of_changes(element, [np.asarray(part) for part in changes]),
                )
            )
    return sites


@partial(jax.jit, static_argnums=0)
def _derivatives(
    config: MomentNetConfig, space: OneElectronSpace, tools: Tools, x: Float[Array, "functions"]
) -> tuple[Moments, Moments]:
    """Moments of ψ², and their derivatives along the functions of ψ."""
    neighbors, operators, functions = tools

    def moments(n: PerPoint) -> Moments:
        return density_moments(config, neighbors, space.grid, space.positions, n, operators)

    psi = functions @ x
    found, derivative = jax.linearize(moments, psi**2)
    changes = jax.lax.map(
        lambda function: derivative(2 * psi * function), functions.T, batch_size=AT_A_TIME
    )
    return found, [part.astype(jnp.float32) for part in changes]


class Curvatures:
    """Hessians of the total energy at sites, and the directions in which they are low.

    Args:
        config: which moments.
        whitening: of the moments.
    """

    def __init__(self, config: MomentNetConfig, whitening: Whitening):
        self.config, self.whitening = config, whitening
        self._learned = jax.jit(self._second_derivatives, static_argnums=1)

    def _second_derivatives(
        self, params: dict, element: tuple[int, ...], moments: Moments, changes: Moments
    ) -> tuple[Moments, Float[Array, "functions functions"]]:
        """The slope f', and f'' times the derivatives of the moments from both sides."""

        def energy(moments: Moments) -> Scalar:
            one = {"": [part[None] for part in moments]}
            return jnp.sum(self.whitening.energies(params, one, {"": np.array(element)})[""])

        slope = jax.grad(energy)
        found, derivative = jax.linearize(slope, moments)
        curved = jax.lax.map(derivative, changes, batch_size=AT_A_TIME)
        products = [
            jnp.einsum("xakm,yakm->xy", left, right)
            for left, right in zip(curved, changes, strict=True)
        ]
        return found, sum(products, start=jnp.zeros(()))

    def hessian(
        self, params: dict, site: Site
    ) -> tuple[Float[np.ndarray, "functions functions"], Float[np.ndarray, "functions functions"]]:
        """Second derivatives of the total energy and of what is learned, as `energy_hessian`.

        Args:
            params: that are trained.
            site: where.
        """
        with jax.enable_x64(True):
            slope, between = self._learned(
                params, tuple(site.element.tolist()), site.moments, site.changes
            )
            plain = self.whitening.adjoint(site.element, [np.asarray(part) for part in slope])
            tools = moment_tools(self.config, site.space)
            along = _along_functions(self.config, site.space, tools, jnp.asarray(site.x), plain)
        eigenvalues = np.asarray(site.space.density.kinetic_eigenvalues)
        scale = 1 / np.sqrt(2 * (eigenvalues + KAPPA))
        learned = (np.asarray(between, float) + np.asarray(along)) * np.outer(scale, scale)
        kept = np.any(np.asarray(site.space.density.transform) != 0, axis=0)
        normal = np.where(kept, site.x / np.sqrt(eigenvalues + KAPPA), 0)
        normal /= np.linalg.norm(normal)
        tangent = np.diag(kept.astype(float)) - np.outer(normal, normal)
        learned = tangent @ ((learned + learned.T) / 2) @ tangent
        return site.rest + learned, learned

    def low(
        self, params: dict, site: Site, floor: float, count: int
    ) -> tuple[float, list[tuple[np.ndarray, float]]]:
        """The lowest curvature, and directions in which it is below the floor.

        Args:
            params: that are trained.
            site: where.
            floor: in hartree.
            count: largest number of directions.

        Returns:
            The lowest eigenvalue; directions as changes of x, and curvatures along them of
            everything that is not learned.
        """
        total, learned = self.hessian(params, site)
        values, vectors = np.linalg.eigh(total)
        eigenvalues = np.asarray(site.space.density.kinetic_eigenvalues)
        found = []
        for value, vector in list(zip(values, vectors.T, strict=True))[:count]:
            if value < floor:
                direction = vector / np.sqrt(2 * (eigenvalues + KAPPA))
                found.append((direction, float(value - vector @ learned @ vector)))
        return float(values[0]), found

    def cuts(
        self,
        site: Site,
        directions: Float[np.ndarray, "directions functions"],
        rest: Float[np.ndarray, "directions"],
    ) -> list[Cut]:
        """Directions as residuals need them."""
        with jax.enable_x64(True):
            tools = moment_tools(self.config, site.space)
            second = _second_along(
                self.config, site.space, tools, jnp.asarray(site.x), jnp.asarray(directions)
            )
        seconds = self.whitening.of_changes(site.element, [np.asarray(part) for part in second])
        firsts = [
            np.tensordot(directions, part, axes=1).astype(np.float32) for part in site.changes
        ]
        return [
            Cut(
                site.moments,
                [part[i] for part in firsts],
                [part[i] for part in seconds],
                np.float32(rest[i]),
            )
            for i in range(len(rest))
        ]

    def along(
        self, params: dict, cuts: dict[str, Cut], element: dict[str, np.ndarray]
    ) -> dict[str, Float[Array, "_"]]:
        """Second derivatives of what is learned along directions, in hartree.

        Args:
            params: that are trained.
            cuts: some of each family.
            element: index of the element of every atom of each family.
        """

        def energies(step: Scalar) -> dict[str, Float[Array, "_"]]:
            moved = {
                name: [
                    part + step * first + step**2 / 2 * second
                    for part, first, second in zip(cut.moments, cut.first, cut.second, strict=True)
                ]
                for name, cut in cuts.items()
            }
            return self.whitening.energies(params, moved, element)

        def slopes(step: Scalar) -> dict[str, Float[Array, "_"]]:
            return jax.jvp(energies, (step,), (jnp.ones_like(step),))[1]

        zero = jnp.zeros((), np.float32)
        return jax.jvp(slopes, (zero,), (jnp.ones_like(zero),))[1]


@dataclass(frozen=True)
class LowCurvatures:
    """What a search at some sites has found.

    Attributes:
        lowest: curvature of every site, in hartree.
        site: number of the site of each direction.
        direction: changes of x, with zeros up to the largest number of functions.
        rest: curvature along each direction of everything that is not learned.
    """

    lowest: Float[np.ndarray, "sites"]
    site: Int[np.ndarray, "directions"]
    direction: Float[np.ndarray, "directions functions"]
    rest: Float[np.ndarray, "directions"]

    @classmethod
    def search(
        cls, curvatures: Curvatures, params: dict, sites: list[Site], floor: float, count: int
    ) -> "LowCurvatures":
        """Looks for them.

        Args:
            curvatures: of the network.
            params: that are trained.
            sites: where.
            floor: curvatures above it are good enough, in hartree.
            count: largest number of directions of each site.
        """
        largest = max(len(site.x) for site in sites)
        lowest, numbers, directions, rests = [], [], [], []
        for number, site in enumerate(sites):
            least, found = curvatures.low(params, site, floor, count)
            lowest.append(least)
            for direction, rest in found:
                numbers.append(number)
                directions.append(np.pad(direction, (0, largest - len(direction))))
                rests.append(rest)
        return cls(
            np.array(lowest),
            np.array(numbers, dtype=int),
            np.array(directions).reshape(-1, largest),
            np.array(rests, dtype=float),
        )

    def write(self, path: Path) -> None:
        """Writes it to a file, completely or not at all."""
        write_arrays(path, vars(self))

    @classmethod
    def read(cls, path: Path) -> "LowCurvatures":
        """That of such a file.

        Raises:
            InputError: if it is damaged.
        """
        return cls(**read_arrays(path, [field.name for field in fields(cls)]))

    def cuts(
        self, curvatures: Curvatures, sites: list[Site], count: int
    ) -> Iterator[tuple[str, list[Cut]]]:
        """The directions of each site that has some, with the name of its family.

        Args:
            curvatures: of the network.
            sites: those of the search.
            count: largest number of directions of a site.
        """
        for number in np.unique(self.site):
            site, own = sites[int(number)], np.flatnonzero(self.site == number)
            # As many each time: other numbers would be compiled again.
            rows = np.resize(own, count)
            found = curvatures.cuts(site, self.direction[rows, : len(site.x)], self.rest[rows])
            yield site.family, found[: len(own)]


@partial(jax.jit, static_argnums=0)
def _along_functions(
    config: MomentNetConfig,
    space: OneElectronSpace,
    tools: Tools,
    x: Float[Array, "functions"],
    slope: Moments,
) -> Float[Array, "functions functions"]:
    """Curvature of Σ f' M, linear in the moments, along the functions of ψ at constant N."""
    neighbors, operators, functions = tools

    def energy(n: PerPoint) -> Scalar:
        found = density_moments(config, neighbors, space.grid, space.positions, n, operators)
        return sum((jnp.vdot(a, m) for a, m in zip(slope, found, strict=True)), start=jnp.zeros(()))

    n = (functions @ x) ** 2
    # A sum over points: the second derivative is diagonal.
    potential, curved = jax.jvp(jax.grad(energy), (n,), (jnp.ones_like(n),))
    local = 4 * n * curved + 2 * potential
    constant = 2 * jnp.vdot(potential, n) / space.n_electrons
    return (functions * local[:, None]).T @ functions - constant * jnp.eye(len(x))


@partial(jax.jit, static_argnums=0)
def _second_along(
    config: MomentNetConfig,
    space: OneElectronSpace,
    tools: Tools,
    x: Float[Array, "functions"],
    directions: Float[Array, "directions functions"],
) -> Moments:
    """Second derivatives of the moments along changes of ψ, at constant N."""
    neighbors, operators, functions = tools
    psi = functions @ x

    def along(direction: Float[Array, "functions"]) -> Moments:
        change = functions @ direction

        def moments(step: Scalar) -> Moments:
            square = jnp.vdot(x, x) + step**2 * jnp.vdot(direction, direction)
            n = (psi + step * change) ** 2 * (jnp.vdot(x, x) / square)
            return density_moments(config, neighbors, space.grid, space.positions, n, operators)

        def first(step: Scalar) -> Moments:
            return jax.jvp(moments, (step,), (jnp.ones_like(step),))[1]

        zero = jnp.zeros(())
        return jax.jvp(first, (zero,), (jnp.ones_like(zero),))[1]

    return jax.lax.map(along, directions)
