"""Linear least squares as sums over rows, for more rows than memory holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kineticnet_jax.errors import InputError


@dataclass
class NormalEquations:
    """Weighted least squares as sums over rows: AᵀA, Aᵀy and yᵀy in float64.

    Attributes:
        gram: AᵀA.
        projection: Aᵀy.
        square: yᵀy.
        weight: sum of the weights.
    """

    gram: Float[np.ndarray, "features features"]
    projection: Float[np.ndarray, "features"]
    square: float = 0.0
    weight: float = 0.0

    @classmethod
    def empty(cls, features: int) -> "NormalEquations":
        """Without rows."""
        return cls(np.zeros((features, features)), np.zeros(features))

    def add(
        self,
        rows: Float[np.ndarray, "rows features"],
        targets: Float[np.ndarray, "rows"],
        weight: float = 1.0,
    ) -> None:
        """Adds rows a and targets y of terms weight (a·c - y)².

        Rows may be features of densities, their derivatives along changes of the density, or
        second derivatives: everything that is linear in the coefficients c.

        Args:
            rows: in the unit of the targets divided by that of c.
            targets: y.
            weight: of each row.

        Raises:
            InputError: for a row or target that is not finite.
        """
        if not (np.all(np.isfinite(rows)) and np.all(np.isfinite(targets))):
            raise InputError("a row of the least-squares problem is not finite")
        self.gram += weight * (rows.T @ rows)
        self.projection += weight * (rows.T @ targets)
        self.square += weight * float(targets @ targets)
        self.weight += weight * len(targets)

    def solve(
        self, regularizations: Sequence[float], free: int = 0
    ) -> Float[np.ndarray, "regularizations features"]:
        """Ridge solutions: least Σ weight (a·c - y)² + λ Σ_j (s_j c_j)² with s_j² = mean of a_j².

        Args:
            regularizations: λ per row.
            free: number of leading features that are not penalised.

        Returns:
            The coefficients for each λ.
        """
        head, tail = slice(0, free), slice(free, None)
        inverse = np.linalg.pinv(self.gram[head, head], rcond=1e-12, hermitian=True)
        carry = inverse @ self.gram[head, tail]
        gram = self.gram[tail, tail] - self.gram[tail, head] @ carry
        projection = self.projection[tail] - carry.T @ self.projection[head]
        scale = np.sqrt(np.diag(self.gram)[tail] / max(self.weight, 1e-300))
        scale = np.where(scale > 0, scale, 1.0)
        values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
        rotated = vectors.T @ (projection / scale)
        solutions = []
        for regularization in regularizations:
            shifted = np.maximum(values, 0.0) + regularization * self.weight
            rest = vectors @ (rotated / shifted) / scale
            first = inverse @ (self.projection[head] - self.gram[head, tail] @ rest)
            solutions.append(np.concatenate([first, rest]))
        return np.array(solutions)

    def mean_square(self, coefficients: Float[np.ndarray, "features"]) -> float:
        """Mean of weight (a·c - y)² over the rows."""
        value = self.square - 2 * coefficients @ self.projection
        value += coefficients @ self.gram @ coefficients
        return float(value / max(self.weight, 1e-300))
