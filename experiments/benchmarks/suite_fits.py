"""Power laws through measured times, and where two of them cross."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """a n^p, fitted to the logarithms by least squares.

    Attributes:
        prefactor: a.
        exponent: p.
        smallest: n of the first point of the fit.
        largest: n of the last one.
        points: their number.
    """

    prefactor: float
    exponent: float
    smallest: int
    largest: int
    points: int

    def __call__(self, n: float) -> float:
        """Its value at a size."""
        return self.prefactor * n**self.exponent


def fit_power_law(values: Mapping[int, float], smallest: int = 1) -> PowerLaw | None:
    """The power law through values by size.

    Args:
        values: positive numbers by n.
        smallest: n from which on they count, where two of them are that large; else all do.

    Returns:
        The fit, or None for fewer than two values.
    """
    sizes = sorted(n for n in values if n >= smallest)
    if len(sizes) < 2:
        sizes = sorted(values)
    if len(sizes) < 2:
        return None
    exponent, constant = np.polyfit(np.log(sizes), np.log([values[n] for n in sizes]), 1)
    return PowerLaw(float(np.exp(constant)), float(exponent), sizes[0], sizes[-1], len(sizes))


def crossing(ours: PowerLaw, theirs: PowerLaw) -> tuple[float, bool]:
    """Where two power laws are equal.

    Returns:
        The size, and whether ours is the smaller one beyond it, rather than before it. Two of the
        same exponent cross at zero or infinity.
    """
    difference = theirs.exponent - ours.exponent
    ratio = np.log(ours.prefactor / theirs.prefactor)
    if difference == 0:
        return (np.inf if ratio > 0 else 0.0), True
    with np.errstate(over="ignore"):
        return float(np.exp(ratio / difference)), bool(difference > 0)


def describe_crossing(ours: PowerLaw, theirs: PowerLaw) -> str:
    """From which size on ours is the faster one, as text."""
    size, beyond = crossing(ours, theirs)
    if size < 1:
        return "always faster" if beyond else "never faster"
    if beyond:
        return f"n = {size:.3g}" if np.isfinite(size) else "never faster"
    return f"faster below n = {size:.3g} only"
