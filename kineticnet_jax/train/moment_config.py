"""What the training of a moment network is: a frozen dataclass, read from a small TOML file."""

import dataclasses
import json
import math
from dataclasses import dataclass, field

from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.base import Target
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.nn.moments import MomentNetConfig
from kineticnet_jax.reference import GUESSES


@dataclass(frozen=True)
class MomentNetChoice:
    """A moment network; the elements are those of the data.

    Attributes:
        filters: of the moments.
        powers: of the density.
        channels: combinations of the moments of an atom for each l.
        hidden: width of the two hidden layers.
    """

    filters: Filters = MomentNetConfig((1,)).filters
    powers: tuple[float, ...] = MomentNetConfig((1,)).powers
    channels: int = 48
    hidden: int = 64

    def config(self, elements: tuple[int, ...], target: Target) -> MomentNetConfig:
        """The network for some elements.

        Raises:
            InputError: for settings no network can be made of.
        """
        config = MomentNetConfig(elements, target, **vars(self))
        config.check()
        return config


@dataclass(frozen=True)
class MomentCurvatureSettings:
    """How low curvatures of the total energy are looked for and raised.

    Attributes:
        weight: of their residuals; 0 leaves curvatures alone.
        first: step of the first search.
        every: steps between two searches.
        geometries: of each family that are searched, the same each time.
        mixtures: shares of superposed atoms in ψ; 0 for ground states.
        directions: of each density that are kept at most.
        floor: curvatures above it are good enough.
        goal: to which those below are raised, in hartree; 1 where only T_vW counts.
        rows: directions of each family in a step.
    """

    weight: float = 1.0
    first: int = 5000
    every: int = 2000
    geometries: int = 6
    mixtures: tuple[float, ...] = (0.0, 1.0)
    directions: int = 12
    floor: float = 0.2
    goal: float = 0.35
    rows: int = 16

    def check(self) -> None:
        """Finds settings that make no sense.

        Raises:
            InputError: naming what to change.
        """
        if not 0 <= self.weight < math.inf:
            raise InputError(f"weight of the curvature must not be negative, but is {self.weight}")
        for name in ("first", "every", "geometries", "directions", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of the curvature must be at least 1")
        if not self.mixtures or not all(0 <= share <= 1 for share in self.mixtures):
            raise InputError(f"mixtures must be from 0 to 1, but are {self.mixtures}")
        if not self.floor <= self.goal:
            raise InputError(
                f"floor of the curvature must not be above its goal, but they are {self.floor:g} "
                f"and {self.goal:g}"
            )


@dataclass(frozen=True)
class VisitSettings:
    """How densities that optimizations visit are looked for and raised in energy.

    Attributes:
        weight: of a visited density, in units of a sample; 0 for none.
        first: step before which optimizations are made for the first time.
        every: steps between them.
        geometries: of each family, other ones each time.
        guesses: that the optimizations start from.
        stops: numbers of steps, one after the other, after which a density is looked at.
        curvature: in hartree, with which the energy rises on the way from the ground state at
            least; 1 where only T_vW counts.
        rows: visited densities of each family in a step.
    """

    weight: float = 0.0
    first: int = 5000
    every: int = 5000
    geometries: int = 4
    guesses: tuple[str, ...] = ("sad", "minao")
    stops: tuple[int, ...] = (10, 20, 40)
    curvature: float = 0.3
    rows: int = 6

    def check(self) -> None:
        """Finds settings that make no sense.

        Raises:
            InputError: naming what to change.
        """
        for name in ("weight", "curvature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} of visits must not be negative, but is {getattr(self, name)}"
                )
        for name in ("first", "every", "geometries", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of visits must be at least 1")
        if not self.stops or min(self.stops) < 1:
            raise InputError(f"stops of visits must be positive, but are {self.stops}")
        if not self.guesses:
            raise InputError(f"guesses of visits must be some of {', '.join(GUESSES)}")
        for guess in self.guesses:
            if guess not in GUESSES:
                raise unknown_name("guess", guess, GUESSES)


@dataclass(frozen=True)
class MomentTrainConfig:
    """The training of a moment network, with Adam.

    Attributes:
        name: of the functional that comes out.
        steps: number of steps.
        target: "pauli" to learn T_s - T_vW, "total" to learn T_s.
        moments: the network.
        families: samples of each family in a step, and no other families; by default `samples` of
            every family of the data.
        samples: see `families`.
        unperturbed: share of these samples that are drawn from ground states without an external
            potential, which are the densities that optimizations end at; the others are drawn from
            all.
        directions: random directions along which the potential of each sample is known.
        kappa: κ in hartree with which these are drawn, see `preconditioned_changes`.
        robust: error of an energy in mHa, and square root of one of a potential, from which on
            errors count less.
        learning_rate: the largest one; it falls to a three hundredth with a cosine.
        warmup: steps over which it grows from zero.
        average: decay per step of the moving average of the parameters that is used.
        curvature: of the total energy, raised where it is too low.
        visits: densities that optimizations come by, whose energies are raised where they are below
            any possible one.
        validate_every: steps between two validations, each with a checkpoint.
        seed: of parameters, directions and batches.
    """

    name: str
    steps: int
    target: Target = "pauli"
    moments: MomentNetChoice = field(default_factory=MomentNetChoice)
    families: dict[str, int] = field(default_factory=dict)
    samples: int = 12
    unperturbed: float = 0.0
    directions: int = 64
    kappa: float = 1.0
    robust: float = 10.0
    learning_rate: float = 3e-3
    warmup: int = 200
    average: float = 0.995
    curvature: MomentCurvatureSettings = field(default_factory=MomentCurvatureSettings)
    visits: VisitSettings = field(default_factory=VisitSettings)
    validate_every: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Checks everything that can be checked without data.

        Raises:
            InputError: for the first value that makes no sense.
        """
        for name in ("steps", "samples", "directions", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("kappa", "robust", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, but is {getattr(self, name):g}")
        if self.families and min(self.families.values()) < 1:
            raise InputError(f"samples of families must be positive, but are {self.families}")
        if not 0 <= self.unperturbed <= 1:
            raise InputError(f"unperturbed must be from 0 to 1, but is {self.unperturbed:g}")
        if not 0 <= self.average < 1 or self.warmup < 0 or self.seed < 0:
            raise InputError(
                "average must be from 0 to below 1, warmup and seed must not be negative"
            )
        self.curvature.check()
        self.visits.check()
        self.moments.config((1,), self.target)

    def to_json(self) -> str:
        """The configuration as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)
