"""What a network looks like: its configuration, named sizes, and the elements it knows."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from ase.data import chemical_symbols

from kineticnet_jax.errors import InputError, unknown_name
from kineticnet_jax.functionals.base import Target
from kineticnet_jax.nn.convolution import Filters
from kineticnet_jax.types import Charges

Inputs = Literal["density", "gradient"]


@dataclass(frozen=True)
class NetworkConfig:
    """What a KineticNet looks like.

    Attributes:
        elements: nuclear charges it can be used for, in ascending order.
        target: "pauli" for T_s - T_vW, "total" for T_s.
        inputs: "density" for n alone, as in the paper, or "gradient" for the reduced gradient too.
        filters: of the convolutions.
        channels: of the signals on the grid.
        features: channels of the atoms for each l.
        interactions: number of message passing layers.
        hidden: width of the pointwise networks.
        vectors: number of vector fields of the decoder. The head is given their lengths and
            products, which tell it the direction in which the signals of several atoms change.
        signed: whether the energy may have either sign, as a correction to another functional;
            the bounds then have to be set outside.
    """

    elements: tuple[int, ...]
    target: Target = "pauli"
    inputs: Inputs = "density"
    filters: Filters = field(default_factory=Filters)
    channels: int = 32
    features: int = 32
    interactions: int = 2
    hidden: int = 32
    vectors: int = 0
    signed: bool = False

    def check(self) -> None:
        """Finds settings no network can be made of.

        Raises:
            InputError: naming what to change.
        """
        self.filters.check()
        check_known_elements(self.elements)
        for name, value, known in (
            ("target", self.target, ("pauli", "total")),
            ("inputs", self.inputs, ("density", "gradient")),
        ):
            if value not in known:
                raise unknown_name(name, value, known)
        sizes = {"channels": self.channels, "features": self.features, "hidden": self.hidden}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} must be at least 1, but is {size}")
        for name in ("interactions", "vectors"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.vectors and self.degree < 1:
            raise InputError("vectors need filters with l = 1, but there are none")

    @property
    def degree(self) -> int:
        """Largest l."""
        return len(self.filters.counts) - 1


SIZES = {
    "tiny": NetworkConfig(
        (1,), filters=Filters((12, 6)), channels=8, features=8, interactions=1, hidden=16
    ),
    "small": NetworkConfig((1,), filters=Filters(cutoff=4.5)),
    "base": NetworkConfig(
        (1,), filters=Filters((20, 16, 12, 8, 6)), channels=64, features=64, hidden=64
    ),
}
"""Named sizes; elements, target and inputs are set by `network_config`.

The filters of "small" end at 4.5 bohr, where the tail of a hydrogen atom begins that holds 2e-4 of
its Thomas-Fermi energy: farther out only messages between atoms and the density at the point count.
"""


def network_config(size: str, elements: tuple[int, ...], **changes: Any) -> NetworkConfig:
    """The configuration of a named size.

    Args:
        size: "tiny", "small" or "base".
        elements: nuclear charges, in any order.
        changes: any other attributes of `NetworkConfig`.

    Raises:
        InputError: for an unknown size or settings that make no sense.
    """
    if size not in SIZES:
        raise unknown_name("network size", size, SIZES)
    config = replace(SIZES[size], elements=tuple(sorted(set(elements))), **changes)
    config.check()
    return config


def check_known_elements(elements: tuple[int, ...]) -> None:
    """Finds lists of elements that a functional cannot have.

    Raises:
        InputError: if they are not nuclear charges in ascending order.
    """
    if not elements or list(elements) != sorted(set(elements)):
        raise InputError(f"elements must be ascending nuclear charges, but are {elements}")
    if elements[0] < 1 or elements[-1] >= len(chemical_symbols):
        raise InputError(f"elements must be nuclear charges, but are {elements}")


def check_elements(elements: tuple[int, ...], charges: Charges) -> None:
    """Finds elements a functional has no parameters of.

    Args:
        elements: nuclear charges it has parameters of.
        charges: of a molecule; zero for padding. Nothing is checked while they are traced.

    Raises:
        InputError: naming the elements.
    """
    if isinstance(charges, jax.core.Tracer):
        return
    unseen = sorted({int(z) for z in np.asarray(charges).ravel()} - {0, *elements})
    if unseen:
        names, known = (
            ", ".join(chemical_symbols[z] for z in charges) for charges in (unseen, elements)
        )
        raise InputError(
            f"the functional has never seen {names}, it knows {known}; "
            "train it on molecules with this element or use another one"
        )
