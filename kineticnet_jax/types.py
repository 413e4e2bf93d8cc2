"""Array aliases with named axes, defined once."""

from jaxtyping import Array, Float, Int
from numpy import ndarray

Scalar = Float[Array, ""]
"""A real number."""

Points = Float[Array, "points 3"]
"""Cartesian coordinates of grid points in bohr."""

PerPoint = Float[Array, "points"]
"""One number for each grid point."""

Positions = Float[Array, "atoms 3"] | Float[ndarray, "atoms 3"]
"""Cartesian coordinates of the nuclei in bohr."""

Charges = Int[Array, "atoms"] | Int[ndarray, "atoms"]
"""Nuclear charges (atomic numbers)."""
