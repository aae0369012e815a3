"""Samples a scene from (seed, index).

Only uniform doubles are drawn, since the streams of numpy's other distributions may change between
releases. The class comes first and is kept while everything else is redrawn until the
hero is well in view, so rejection cannot favour a class.
"""

from __future__ import annotations

import colorsys
import math

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_plugin_shapes.world.captions import TEMPLATES, describe
from ppap_plugin_shapes.world.scene import FIRST_SOLID, Camera, Scene, pixel_centres, trace
from ppap_plugin_shapes.world.solids import Solid
from ppap_plugin_shapes.world.vocabulary import COLOURS, SHAPES, TONES

Colour = tuple[float, float, float]
Surfaces = NDArray[np.uint8]

PROBE = 32
"""Side of the picture for measuring visibility, independent of the rendered size."""
COVERAGE = (0.09, 0.335)
"""Accepted share of the hero: within 8 to 35 %, with a margin for other sizes."""

MAX_SOLIDS = 3
"""The hero and at most two others."""

REACH = 7.0
"""Distance from the hero's foot to the lamp."""

_PROBE = pixel_centres(PROBE)
# Silhouette over radius^2 at a typical pitch, and the range of height over radius.
_SILHOUETTES = (3.14, 5.9, 4.2, 2.6)
_PROPORTIONS = ((2.0, 2.0), (2.0, 2.0), (1.9, 2.5), (2.1, 2.7))


class Dice:
    """Uniform draws that depend only on (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        bits = np.random.Philox(np.random.SeedSequence([seed, index]))
        self._random = np.random.Generator(bits).random

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._random())

    def below(self, count: int) -> int:
        return int(float(self._random()) * count)

    def sign(self) -> int:
        return 2 * self.below(2) - 1


def sample_scene(seed: int, index: int) -> Scene:
    """The scene of (seed, index), both non-negative."""
    dice = Dice(seed, index)
    shape, colour = divmod(dice.below(len(SHAPES) * len(COLOURS)), len(COLOURS))
    others = dice.below(MAX_SOLIDS)
    scene = _stage(dice, shape, colour)
    while not _hero_in_view(scene):
        scene = _stage(dice, shape, colour)
    scene = _add_others(dice, scene, others)
    return attrs.evolve(scene, caption=describe(scene, template=dice.below(TEMPLATES)))


def _stage(dice: Dice, shape: int, colour: int) -> Scene:
    """Room, lamp, camera and the hero at the origin."""
    radius = dice.uniform(0.42, 0.58)
    height = radius * dice.uniform(*_PROPORTIONS[shape])
    pitch = dice.uniform(0.33, 0.58)
    tan_half_fov = math.tan(dice.uniform(0.31, 0.37))
    frame = math.sqrt(_SILHOUETTES[shape] * radius**2 / dice.uniform(0.10, 0.31)) / 2
    distance = frame / tan_half_fov
    slack = max(frame - 1.15 * radius, 0.0)
    aim_x = slack * dice.uniform(-0.75, 0.75)
    aim_y = height / 2 + slack * dice.uniform(-0.25, 0.55)
    camera = Camera(
        position=(aim_x, aim_y + distance * math.sin(pitch), -distance * math.cos(pitch)),
        pitch=pitch,
        tan_half_fov=tan_half_fov,
    )
    azimuth = dice.sign() * dice.uniform(0.45, 1.15)
    elevation = dice.uniform(0.70, 1.05)
    light = (
        REACH * math.sin(azimuth) * math.cos(elevation),
        REACH * math.sin(elevation),
        -REACH * math.cos(azimuth) * math.cos(elevation),
    )
    # From the camera, the nearest edge of a cube is off both face centres, so two faces show.
    bearing = math.atan2(aim_x, distance * math.cos(pitch))
    yaw = dice.uniform(0.45, 1.12) - bearing if SHAPES[shape] == "cube" else 0.0
    floor_tone = dice.below(len(TONES))
    wall_tone = (floor_tone + 1 + dice.below(len(TONES) - 1)) % len(TONES)
    return Scene(
        solids=(Solid(shape, colour, 0.0, 0.0, radius, height, yaw),),
        camera=camera,
        wall_distance=dice.uniform(1.3, 3.2),
        wall_yaw=dice.uniform(-0.22, 0.22),
        light=light,
        floor=_jitter(dice, list(TONES.values())[floor_tone]),
        wall=_jitter(dice, list(TONES.values())[wall_tone]),
        floor_name=list(TONES)[floor_tone],
        wall_name=list(TONES)[wall_tone],
    )


def _jitter(dice: Dice, colour: Colour) -> Colour:
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    return colorsys.hsv_to_rgb(
        (hue + dice.uniform(-0.03, 0.03)) % 1.0,
        saturation * dice.uniform(0.7, 1.2),
        value * dice.uniform(0.92, 1.06),
    )


def _hero_in_view(scene: Scene) -> bool:
    surface = trace(scene, scene.camera.directions(*_PROBE))[1]
    hero = (surface == FIRST_SOLID).reshape(PROBE, PROBE)
    inner = hero[1:-1, 1:-1].sum()
    return bool(inner == hero.sum() and COVERAGE[0] <= inner / PROBE**2 <= COVERAGE[1])


def _add_others(dice: Dice, scene: Scene, count: int) -> Scene:
    """Add up to ``count`` solids behind or beside the hero, fewer if there is no room."""
    rays = scene.camera.directions(*_PROBE)
    depth, surface = trace(scene, rays)
    for _ in range(10 * count):
        if len(scene.solids) > count:
            break
        other = _other(dice, scene)
        if not _stands_free(scene, other):
            continue
        layer = other.intersect(scene.camera.origin(rays.dtype), rays)
        after = np.where(layer < depth, FIRST_SOLID + len(scene.solids), surface)
        if _hero_stays_in_front(surface, after, solids=1 + len(scene.solids)):
            scene = attrs.evolve(scene, solids=(*scene.solids, other))
            depth, surface = np.minimum(layer, depth), after
    return scene


def _other(dice: Dice, scene: Scene) -> Solid:
    hero, camera = scene.solids[0], scene.camera
    shape, colour = divmod(dice.below(len(SHAPES) * len(COLOURS)), len(COLOURS))
    radius = hero.radius * dice.uniform(0.6, 0.95)
    height = radius * dice.uniform(*_PROPORTIONS[shape])
    z = dice.uniform(-0.3, 2.2)
    across = dice.uniform(-0.88, 0.88) * camera.tan_half_fov
    x = camera.position[0] + across * camera.depth(0.0, height / 2, z)
    return Solid(shape, colour, x, z, radius, height, yaw=dice.uniform(0.0, math.pi / 2))


def _stands_free(scene: Scene, other: Solid) -> bool:
    gap = 0.04
    return (
        other.colour not in {solid.colour for solid in scene.solids}
        and scene.wall_clearance(other.x, other.z) > other.footprint + gap
        and all(
            math.hypot(other.x - solid.x, other.z - solid.z)
            > other.footprint + solid.footprint + gap
            for solid in scene.solids
        )
    )


def _hero_stays_in_front(before: Surfaces, after: Surfaces, solids: int) -> bool:
    """Whether the hero is not occluded and the others look smaller, but large enough."""
    least = 0.015 * PROBE**2
    hero = (before == FIRST_SOLID).sum()
    pixels = np.bincount(after, minlength=FIRST_SOLID + solids)[FIRST_SOLID:]
    others = pixels[1:]
    return bool(pixels[0] == hero and others.min() >= least and others.max() <= hero / 2)
