"""Array aliases with named axes, defined once."""

from jaxtyping import Array, Float, Int
from numpy import ndarray

Scalar = Float[Array, ""] | Float[ndarray, ""] | float
"""A real number: a zero-dimensional array or a Python float."""

Points = Float[Array, "points 3"] | Float[ndarray, "points 3"]
"""Cartesian coordinates of grid points in bohr."""

PerPoint = Float[Array, "points"] | Float[ndarray, "points"]
"""One number for each grid point."""

Positions = Float[Array, "atoms 3"] | Float[ndarray, "atoms 3"]
"""Cartesian coordinates of the nuclei in bohr."""

Charges = Int[Array, "atoms"] | Int[ndarray, "atoms"]
"""Nuclear charges (atomic numbers)."""
