"""Closed-form ray intersection with the four solids.

Each solid is an affine image of a canonical one inside the cube [-1, 1]^3, and each canonical solid
is convex, so a ray o + t d is inside it for one interval of t: an intersection of the intervals of
slabs and quadrics. Affine maps keep t, so t found in local coordinates is t in the world.

Vectors are arrays (3, n) of x right, y up, z away from the camera.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_plugin_shapes.world.vocabulary import COLOURS, SHAPES

Floats = NDArray[np.floating[Any]]
Interval = tuple[Floats, Floats]


@attrs.frozen
class Solid:
    """A solid on the floor.

    Attributes:
        shape: Index into ``SHAPES``.
        colour: Index into ``COLOURS``.
        x, z: Position of its axis on the floor.
        radius: Half its width (before turning).
        height: Height above the floor.
        yaw: Rotation about the vertical, in radians.
    """

    shape: int
    colour: int
    x: float
    z: float
    radius: float
    height: float
    yaw: float = 0.0

    @property
    def centre(self) -> tuple[float, float, float]:
        return (self.x, self.height / 2, self.z)

    @property
    def kind(self) -> int:
        """Its index into ``CLASS_NAMES``."""
        return self.shape * len(COLOURS) + self.colour

    @property
    def footprint(self) -> float:
        """Radius of the circle around its base."""
        return self.radius * (math.sqrt(2) if SHAPES[self.shape] == "cube" else 1.0)

    def intersect(self, origin: Floats, direction: Floats) -> Floats:
        """Smallest t > 0, (n,), at which rays from outside enter the solid; inf if they miss."""
        offset = origin - _column(self.centre, origin.dtype)
        close = np.flatnonzero(self._comes_close(offset, direction))
        if offset.shape[1] > 1:
            offset = offset.take(close, axis=1)
        near, far = _INTERVALS[self.shape](
            self._to_local(offset), self._to_local(direction.take(close, axis=1))
        )
        hit = (near < far) & (near > 0)
        entry = np.full(direction.shape[1], np.inf, direction.dtype)
        entry[close[hit]] = near[hit]
        return entry

    def normal(self, points: Floats) -> Floats:
        """Outward unit normals (3, n) at points (3, n) of the surface."""
        local = self._to_local(points - _column(self.centre, points.dtype))
        x, y, z = _NORMALS[self.shape](local) / _column(self._half_extents, points.dtype)
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return normalise(stack(x * cos + z * sin, y, z * cos - x * sin))

    @property
    def _half_extents(self) -> tuple[float, float, float]:
        return (self.radius, self.height / 2, self.radius)

    def _comes_close(self, offset: Floats, direction: Floats) -> NDArray[np.bool_]:
        """Whether rays meet the bounding sphere, slightly enlarged, or start within it."""
        outside = dot(offset, offset) - 1.01 * (self.footprint**2 + self.height**2 / 4)
        along = dot(offset, direction)
        meets: NDArray[np.bool_] = outside * dot(direction, direction) < along * along
        return (outside < 0) | (meets & (along < 0))

    def _to_local(self, vectors: Floats) -> Floats:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        rx, ry, rz = self._half_extents
        x, y, z = vectors
        return stack((x * cos - z * sin) / rx, y / ry, (x * sin + z * cos) / rz)


def dot(a: Floats, b: Floats) -> Floats:
    """Inner products of (3, n) vectors, without BLAS for identical bits on all machines."""
    products: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return products


def stack(x: Floats, y: Floats, z: Floats) -> Floats:
    """Stack components to vectors (3, n)."""
    vectors = np.empty((3, *x.shape), x.dtype)
    vectors[0], vectors[1], vectors[2] = x, y, z
    return vectors


def normalise(vectors: Floats) -> Floats:
    return vectors / np.sqrt(dot(vectors, vectors))


def _column(values: tuple[float, float, float], dtype: np.dtype[Any]) -> Floats:
    return np.array(values, dtype)[:, None]


def _sphere(o: Floats, d: Floats) -> Interval:
    near, far, _ = _roots(dot(d, d), dot(o, d), dot(o, o) - 1)
    return near, far


def _cube(o: Floats, d: Floats) -> Interval:
    (x0, x1), (y0, y1), (z0, z1) = (_slab(o[axis], d[axis]) for axis in range(3))
    return np.maximum(np.maximum(x0, y0), z0), np.minimum(np.minimum(x1, y1), z1)


def _cylinder(o: Floats, d: Floats) -> Interval:
    a, b, c = (u[0] * v[0] + u[2] * v[2] for u, v in ((d, d), (o, d), (o, o)))
    near, far, _ = _roots(np.maximum(a, 1e-30), b, c - 1)  # a vertical ray has a = 0
    low, high = _slab(o[1], d[1])
    return np.maximum(near, low), np.minimum(far, high)


def _cone(o: Floats, d: Floats) -> Interval:
    # Radius w = (1 - y) / 2 at height y: x^2 + z^2 <= w^2, apex up.
    w, dw = (1 - o[1]) / 2, -d[1] / 2
    a = d[0] * d[0] + d[2] * d[2] - dw * dw
    b = o[0] * d[0] + o[2] * d[2] - w * dw
    c = o[0] * o[0] + o[2] * o[2] - w * w
    first, second, steep = _roots(a, b, c)
    # A ray steeper than the side lies in the lower nappe before its first or after its second root.
    near = np.where(steep, np.where(dw > 0, second, -np.inf), first)
    far = np.where(steep, np.where(dw > 0, np.inf, first), second)
    low, high = _slab(o[1], d[1])
    return np.maximum(near, low), np.minimum(far, high)


def _slab(o: Floats, d: Floats) -> Interval:
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (-1 - o) / d, (1 - o) / d
    return np.minimum(a, b), np.maximum(a, b)


def _roots(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Ordered roots of a t^2 + 2 b t + c, nan if there are none, and whether a < 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # No difference of similar numbers, so that both roots stay accurate for small a.
        q = -b - np.copysign(np.sqrt(b * b - a * c), b)
        t0, t1 = q / a, c / q
    return np.minimum(t0, t1), np.maximum(t0, t1), a < 0


def _cube_normal(p: Floats) -> Floats:
    size = np.abs(p)
    return np.where(size == size.max(axis=0), np.sign(p), 0).astype(p.dtype)


def _cylinder_normal(p: Floats) -> Floats:
    x, y, z = p
    side = y * y < x * x + z * z
    return stack(x * side, y * ~side, z * side)


def _cone_normal(p: Floats) -> Floats:
    x, y, z = p
    base = 1 + y < 1e-4
    return stack(x * ~base, np.where(base, -1, (1 - y) / 4), z * ~base)


# In the order of SHAPES.
_INTERVALS = (_sphere, _cube, _cylinder, _cone)
_NORMALS = (lambda p: p, _cube_normal, _cylinder_normal, _cone_normal)
