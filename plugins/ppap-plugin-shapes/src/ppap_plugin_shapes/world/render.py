"""Renders scenes with ground truth.

Radiance is computed in linear light: albedo times (ambient x openness + lamp x cosine x
visibility), plus a Blinn-Phong highlight on the solids. Openness is reduced by the form
factor of a sphere in place of each neighbour, which gives contact shadows. The lamp is a disc: each
ray of a pixel samples another point of it, so averaging smooths edges and shadows. Its light falls
with the distance, not its square, to keep the far wall bright.

Each scene is computed alone, so its bytes do not depend on the batch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_plugin_shapes.world.sampling import MAX_SOLIDS, REACH, sample_scene
from ppap_plugin_shapes.world.scene import FIRST_SOLID, FLOOR, WALL, Scene, pixel_centres, trace
from ppap_plugin_shapes.world.solids import Floats, Solid, dot, normalise
from ppap_plugin_shapes.world.vocabulary import COLOURS, PAINTS

SUPERSAMPLING = 4
BLOCK = 16384
"""Rays per block, so that arrays fit in the cache; 32 x 32 pixels are one block."""

AMBIENT, LAMP, GLOSS = 0.42, 0.78, 0.22
LAMP_RADIUS = 0.85
MIN_SIZE = 8


@attrs.frozen(eq=False)
class Scenes:
    """Rendered scenes with exact ground truth at pixel centres.

    Attributes:
        images: (B, size, size, 3) uint8, sRGB.
        labels: (B,) int64, the hero's index into ``CLASS_NAMES``.
        depth: (B, size, size) float32, distance along the viewing axis in world units.
        segmentation: (B, size, size) uint8, indices into ``SEGMENTATION_NAMES``.
        boxes: (B, 3, 5) float32, a row (class, x1, y1, x2, y2) for each solid, the hero first: its
            index into ``CLASS_NAMES`` and the box around its visible pixels, in fractions of the
            picture from the top left. Rows of solids that are not there, or hidden, are -1.
        captions: B captions.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    depth: NDArray[np.float32]
    segmentation: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    captions: tuple[str, ...]


def render(
    seed: int, indices: Sequence[int] | range | NDArray[np.integer[Any]], size: int = 32
) -> Scenes:
    """Render the scenes ``indices`` of the world ``seed``.

    Args:
        seed: Seed of the world, >= 0.
        indices: Indices of scenes, each >= 0, in any order.
        size: Side of the pictures in pixels, >= 8. It changes the sampling, not the scene.

    Raises:
        ValueError: If the seed or an index is negative, or the size below 8.
        TypeError: If any of them is not an integer.
    """
    seed, size = operator.index(seed), operator.index(size)
    wanted = [operator.index(index) for index in indices]
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if wanted and min(wanted) < 0:
        raise ValueError(f"indices contain {min(wanted)}; they must not be negative")
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; it must be at least {MIN_SIZE} pixels")
    count = len(wanted)
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty(count, np.int64)
    depth = np.empty((count, size, size), np.float32)
    segmentation = np.empty((count, size, size), np.uint8)
    boxes = np.empty((count, MAX_SOLIDS, 5), np.float32)
    captions = []
    for row, index in enumerate(wanted):
        scene = sample_scene(seed, index)
        images[row] = picture(scene, size)
        labels[row] = scene.solids[0].kind
        depth[row], segmentation[row], boxes[row] = ground_truth(scene, size)
        captions.append(scene.caption)
    return Scenes(images, labels, depth, segmentation, boxes, tuple(captions))


def ground_truth(
    scene: Scene, size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Depth and segmentation (size, size) of the points behind the pixel centres, and the boxes
    (3, 5) around them; see `Scenes`.
    """
    depth, surface = trace(scene, scene.camera.directions(*pixel_centres(size)))
    surface = surface.reshape(size, size)
    names = [WALL, FLOOR, *(FIRST_SOLID + solid.shape for solid in scene.solids)]
    boxes = np.full((MAX_SOLIDS, 5), -1, np.float32)
    for row, solid in enumerate(scene.solids):
        if (visible := surface == FIRST_SOLID + row).any():
            boxes[row] = solid.kind, *_box(visible)
    return depth.astype(np.float32).reshape(size, size), np.array(names, np.uint8)[surface], boxes


def _box(visible: NDArray[np.bool_]) -> Floats:
    """Outer edges (x1, y1, x2, y2) of the true pixels of a square, as fractions of its side."""
    across, down = (np.flatnonzero(visible.any(axis=axis)) for axis in (0, 1))
    edges = np.array([across[0], down[0], across[-1] + 1, down[-1] + 1])
    return edges / len(visible)


def picture(scene: Scene, size: int) -> NDArray[np.uint8]:
    """The antialiased picture (size, size, 3), sRGB."""
    samples = SUPERSAMPLING**2
    sub_across, sub_up = (axis / size for axis in pixel_centres(SUPERSAMPLING))
    across, up = pixel_centres(size)
    pixels = max(1, BLOCK // samples)
    linear = np.empty((3, size * size), np.float32)
    for start in range(0, size * size, pixels):
        block = slice(start, start + pixels)
        rays = scene.camera.directions(
            (sub_across[:, None] + across[block]).ravel().astype(np.float32),
            (sub_up[:, None] + up[block]).ravel().astype(np.float32),
        )
        radiance = np.minimum(_shade(scene, rays), 1)
        linear[:, block] = radiance.reshape(3, samples, -1).mean(axis=1)
    levels = np.rint(255 * _encode(linear)).astype(np.uint8)
    picture: NDArray[np.uint8] = levels.T.reshape(size, size, 3)
    return picture


def _shade(scene: Scene, rays: Floats) -> Floats:
    """Linear RGB (3, n) seen along camera rays (3, n)."""
    depth, surface = trace(scene, rays)
    points = scene.camera.origin(rays.dtype) + depth * rays
    normals, albedo = _surface(scene, surface, points)
    lamp = _lamp(scene, points.shape[1]) - points
    distance = np.sqrt(dot(lamp, lamp))
    key = np.maximum(dot(normals, lamp), 0) * (LAMP * REACH) / (distance * distance)
    openness = 0.75 + 0.25 * normals[1]
    for index, solid in enumerate(scene.solids, start=FIRST_SOLID):
        elsewhere = surface != index  # a convex solid shades itself only where its key light is 0
        openness *= 1 - _form_factor(solid, points, normals) * elsewhere
        key *= (solid.intersect(points, lamp) >= 1) | ~elsewhere
    radiance: Floats = albedo * (AMBIENT * openness + key)
    shiny = np.flatnonzero((surface >= FIRST_SOLID) & (key > 0))
    radiance[:, shiny] += _highlight(*(v.take(shiny, axis=1) for v in (normals, lamp, rays)))
    return radiance


def _highlight(normals: Floats, lamp: Floats, rays: Floats) -> Floats:
    """Blinn-Phong, (n,): the cosine between normal and halfway vector to the 32nd power."""
    power = np.maximum(dot(normals, normalise(normalise(lamp) - normalise(rays))), 0)
    for _ in range(5):
        power = power * power
    highlight: Floats = GLOSS * power
    return highlight


def _surface(scene: Scene, surface: NDArray[np.uint8], points: Floats) -> tuple[Floats, Floats]:
    """Unit normals and linear albedo, each (3, n)."""
    solids = scene.solids
    flat = [scene.wall_normal, (0.0, 1.0, 0.0), *[(0.0, 0.0, 0.0)] * len(solids)]
    paints = [scene.wall, scene.floor, *(PAINTS[COLOURS[solid.colour]] for solid in solids)]
    normals = np.array(flat, np.float32).T.take(surface, axis=1)
    for index, solid in enumerate(solids, start=FIRST_SOLID):
        here = np.flatnonzero(surface == index)
        normals[:, here] = solid.normal(points.take(here, axis=1))
    return normals, _decode(np.array(paints, np.float32)).T.take(surface, axis=1)


def _lamp(scene: Scene, rays: int) -> Floats:
    """Points (3, rays) of the lamp's disc in a sunflower pattern, the same for each pixel."""
    samples = SUPERSAMPLING**2
    steps = np.arange(samples) * 7 % samples  # so that neighbouring rays sample distant points
    radius = LAMP_RADIUS * np.sqrt((steps + 0.5) / samples)
    angle = steps * math.pi * (3 - math.sqrt(5))
    x, _, z = scene.light
    sideways = np.array([-z, 0.0, x]) / math.hypot(x, z)
    upwards = np.array([0.0, 1.0, 0.0])
    disc = np.outer(sideways, radius * np.cos(angle)) + np.outer(upwards, radius * np.sin(angle))
    points = (np.array(scene.light)[:, None] + disc).astype(np.float32)
    return np.repeat(points, rays // samples, axis=1)


def _form_factor(solid: Solid, points: Floats, normals: Floats) -> Floats:
    """Share (n,) of the cosine-weighted sky that a sphere in place of ``solid`` hides."""
    towards = np.array(solid.centre, np.float32)[:, None] - points
    square = dot(towards, towards)
    cosine = np.maximum(dot(normals, towards), 0) / np.sqrt(square)
    return np.minimum(0.9 * cosine * solid.radius**2 / square, 0.9)


def _encode(linear: Floats) -> Floats:
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _decode(srgb: Floats) -> Floats:
    return np.where(srgb < 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
