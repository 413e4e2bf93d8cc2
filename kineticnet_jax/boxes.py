"""A binary tree of boxes over the grid points of a large molecule, and interpolation in them.

What is smooth in a box is known on all its points by its values on a few nodes, a tensor product
of Chebyshev's. Values on the nodes of a box are handed down to those of smaller ones, and in the
end to the points.

Reference: W. Fong, E. Darve, J. Comput. Phys. 228, 8712 (2009), of which this is the tree without
    the expansion of sources, as a molecule has far more points than atoms.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kineticnet_jax.types import Points

NODES = 6
"""Chebyshev nodes of a box along each axis."""

SEPARATION = 0.35
"""Radius of a box, as a fraction of its distance from an atom, up to which it is far away."""

LEAF = 256
"""Largest number of points in the smallest boxes."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["order", "place", "centers", "radii"],
    meta_fields=["size"],
)
@dataclass(frozen=True)
class Tree:
    """A binary tree of boxes over grid points; level k has 2^k boxes, from left to right.

    Attributes:
        order: index of the grid point in every place of the leaves.
        place: the place of every grid point.
        centers: of the boxes of each level, in bohr.
        radii: half their edges, in bohr.
        size: number of points in a leaf.
    """

    order: Int[Array | np.ndarray, "places"]
    place: Int[Array | np.ndarray, "points"]
    centers: tuple[Float[Array | np.ndarray, "_ 3"], ...]
    radii: tuple[Float[Array | np.ndarray, "_ 3"], ...]
    size: int

    @classmethod
    def build(cls, points: Float[Array | np.ndarray, "points 3"], leaf: int = LEAF) -> "Tree":
        """Halves the points along the longest edge of their box until few enough are left.

        Args:
            points: in bohr, on the host.
            leaf: largest number of points in a leaf.
        """
        points = np.asarray(points)
        depth = (max(len(points) - 1, 0) // leaf).bit_length()
        size = -(-len(points) // (1 << depth))
        # Leaves are filled up with the last point, which counts in its first place only.
        order = np.pad(np.arange(len(points)), (0, (size << depth) - len(points)), mode="edge")
        centers, radii = [], []
        for level in range(depth + 1):
            boxes = points[order].reshape(1 << level, -1, 3)
            low, high = boxes.min(axis=1), boxes.max(axis=1)
            centers.append((low + high) / 2)
            radii.append(np.maximum((high - low) / 2, 1e-6))
            if level < depth:
                axis = np.argmax(high - low, axis=1)
                along = np.take_along_axis(boxes, axis[:, None, None], axis=2)[:, :, 0]
                half = np.argpartition(along, along.shape[1] // 2, axis=1)
                order = np.take_along_axis(order.reshape(1 << level, -1), half, axis=1).reshape(-1)
        place = np.zeros(len(points), dtype=np.int64)
        place[order[::-1]] = np.arange(len(order))[::-1]
        return cls(order, place, tuple(centers), tuple(radii), size)

    @property
    def depth(self) -> int:
        """The level of the leaves."""
        return len(self.centers) - 1

    @property
    def nodes(self) -> Float[Array, "nodes 3"]:
        """The nodes of all boxes in bohr, NODES³ of each, level after level."""
        cube = np.meshgrid(*[_chebyshev_nodes()] * 3, indexing="ij")
        unit = np.stack(cube, axis=-1).reshape(-1, 3)
        centers, radii = (jnp.concatenate(list(levels)) for levels in (self.centers, self.radii))
        nodes = centers[:, None] + radii[:, None] * jnp.asarray(unit, centers.dtype)
        return nodes.reshape(-1, 3)

    def seen_from(
        self, position: Float[np.ndarray, "3"], reach: float
    ) -> tuple[Int[np.ndarray, "near"], Int[np.ndarray, "far"]]:
        """Leaves near a place, and the largest boxes far from it among those of all levels.

        Args:
            position: the place in bohr, on the host.
            reach: distance in bohr beyond which boxes are left out.
        """
        open_boxes, far = np.ones(1, dtype=bool), []
        for level, (centers, radii) in enumerate(zip(self.centers, self.radii, strict=True)):
            distance = np.linalg.norm(position - np.asarray(centers), axis=1)
            radius = np.linalg.norm(np.asarray(radii), axis=1)
            open_boxes &= distance - radius < reach
            separate = open_boxes & (radius <= SEPARATION * distance)
            far.append(separate)
            open_boxes &= ~separate
            if level < self.depth:
                open_boxes = np.repeat(open_boxes, 2)
        return np.flatnonzero(open_boxes), np.flatnonzero(np.concatenate(far))

    def interpolate(
        self, points: Points, values: Float[Array, "nodes components"]
    ) -> Float[Array, "points components"]:
        """Hands what is known on the nodes of boxes down to smaller ones, and to the points.

        Args:
            points: the grid points in bohr, as they were sorted or a little elsewhere.
            values: on the nodes of all boxes; those of a box count on all its points.

        Returns:
            The sum over the boxes that hold each point.
        """
        cube = (NODES,) * 3
        unit = jnp.asarray(_chebyshev_nodes(), values.dtype)
        values = jnp.swapaxes(values.reshape(-1, NODES**3, values.shape[1]), 1, 2)
        field = values[:1].reshape(1, -1, *cube)
        for level in range(1, self.depth + 1):
            boxes = 1 << level
            center, radius = (
                jnp.repeat(column[level - 1], 2, axis=0) for column in (self.centers, self.radii)
            )
            # Coordinates of the nodes in the box around.
            offset = (jnp.asarray(self.centers[level]) - center) / radius
            scale = jnp.asarray(self.radii[level]) / radius
            x, y, z = jnp.moveaxis(_lagrange(offset[..., None] + scale[..., None] * unit), 1, 0)
            field = jnp.repeat(field, 2, axis=0)
            field = jnp.einsum("bcxyz,bkz->bcxyk", field, z)
            field = jnp.einsum("bcxyk,bjy->bcxjk", field, y)
            field = jnp.einsum("bcxjk,bix->bcijk", field, x)
            field += values[boxes - 1 : 2 * boxes - 1].reshape(boxes, -1, *cube)

        def at_points(
            leaf: tuple[
                Float[Array, "size 3"], Float[Array, "3"], Float[Array, "3"], Float[Array, "..."]
            ],
        ) -> Float[Array, "size components"]:
            points, center, radius, field = leaf
            x, y, z = jnp.moveaxis(_lagrange((points - center) / radius), 1, 0)
            field = jnp.einsum("cxyz,pz->cxyp", field, z)
            field = jnp.einsum("cxyp,py->cxp", field, y)
            return jnp.einsum("cxp,px->pc", field, x)

        leaves = jnp.asarray(points)[jnp.asarray(self.order)].reshape(-1, self.size, 3)
        known = jax.lax.map(at_points, (leaves, self.centers[-1], self.radii[-1], field))
        return known.reshape(-1, known.shape[-1])[jnp.asarray(self.place)]


def _chebyshev_nodes() -> Float[np.ndarray, "nodes"]:
    return np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)


def _lagrange(x: Float[Array, "*points"]) -> Float[Array, "*points nodes"]:
    """Lagrange polynomials of the nodes, L_i(x) = (1 + 2 Σ_k T_k(x_i) T_k(x)) / NODES."""
    chebyshev = [jnp.ones_like(x), x]
    while len(chebyshev) < NODES:
        chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
    matrix = np.polynomial.chebyshev.chebvander(_chebyshev_nodes(), NODES - 1)
    matrix[:, 1:] *= 2
    return jnp.stack(chebyshev, axis=-1) @ jnp.asarray(matrix.T / NODES, x.dtype)
