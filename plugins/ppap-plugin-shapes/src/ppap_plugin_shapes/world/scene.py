"""Scenes, and ray casting in them.

The camera at e looks along f with right r and up u; the ray through picture coordinates (h, v) in
[-1, 1] is e + t (f + tan(fov / 2) (h r + v u)). As f has length one and r, u are orthogonal to it,
t is the depth.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_plugin_shapes.world.solids import Floats, Solid, stack

WALL, FLOOR = 0, 1
FIRST_SOLID = 2


@attrs.frozen
class Camera:
    """A pinhole that looks towards +z and down by ``pitch`` radians, with a square picture."""

    position: tuple[float, float, float]
    pitch: float
    tan_half_fov: float

    def directions(self, across: Floats, up: Floats) -> Floats:
        """Ray directions (3, n) of unit depth for picture coordinates (n,) in [-1, 1]."""
        across, up = across * self.tan_half_fov, up * self.tan_half_fov
        sin, cos = math.sin(self.pitch), math.cos(self.pitch)
        return stack(across, up * cos - sin, up * sin + cos)

    def origin(self, dtype: np.dtype[Any]) -> Floats:
        """The position as a vector (3, 1)."""
        return np.array(self.position, dtype)[:, None]

    def depth(self, x: float, y: float, z: float) -> float:
        """Distance of a point along the viewing axis."""
        _, ey, ez = self.position
        return (z - ez) * math.cos(self.pitch) - (y - ey) * math.sin(self.pitch)


@attrs.frozen
class Scene:
    """All parameters of a picture. The hero is ``solids[0]``.

    Attributes:
        wall_distance: Distance from the origin to the wall.
        wall_yaw: Rotation of the wall about the vertical, in radians.
        light: Centre of the lamp.
        floor, wall: The sRGB albedos in [0, 1].
        floor_name, wall_name: Names of these tones in captions.
    """

    solids: tuple[Solid, ...]
    camera: Camera
    wall_distance: float
    wall_yaw: float
    light: tuple[float, float, float]
    floor: tuple[float, float, float]
    wall: tuple[float, float, float]
    floor_name: str
    wall_name: str
    caption: str = ""

    @property
    def wall_normal(self) -> tuple[float, float, float]:
        return (math.sin(self.wall_yaw), 0.0, -math.cos(self.wall_yaw))

    def wall_clearance(self, x: float, z: float) -> float:
        """Distance of a point from the wall."""
        nx, _, nz = self.wall_normal
        return nx * x + nz * z + self.wall_distance


def trace(scene: Scene, directions: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """Find the first hit of camera rays (3, n).

    Returns depth (n,) and surface (n,): WALL, FLOOR, or FIRST_SOLID + k for ``solids[k]``.
    """
    origin = scene.camera.origin(directions.dtype)
    depth = _wall(scene, directions)
    surface = np.full(depth.shape, WALL, np.uint8)
    layers = [_floor(scene, directions)]
    layers += [solid.intersect(origin, directions) for solid in scene.solids]
    for index, layer in enumerate(layers, start=FLOOR):
        surface = np.maximum(surface, (layer < depth) * np.uint8(index))
        depth = np.minimum(depth, layer)
    return depth, surface


def pixel_centres(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Picture coordinates (across, up) of pixel centres, (size * size,) each, rows from the top."""
    centres = (2 * np.arange(size) + 1) / size - 1
    return np.tile(centres, size), np.repeat(-centres, size)


def _wall(scene: Scene, directions: Floats) -> Floats:
    nx, _, nz = scene.wall_normal
    x, _, z = scene.camera.position
    # The wall is ahead of every ray: its rotation and the field of view are far below 90 degrees.
    depth: Floats = -scene.wall_clearance(x, z) / (nx * directions[0] + nz * directions[2])
    return depth


def _floor(scene: Scene, directions: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        depth = -scene.camera.position[1] / directions[1]
    return np.where(depth > 0, depth, np.inf).astype(directions.dtype, copy=False)
