"""Captions of scenes: the hero first, then what it stands on, before, or next to."""

from __future__ import annotations

from ppap_plugin_shapes.world.scene import Scene
from ppap_plugin_shapes.world.solids import Solid
from ppap_plugin_shapes.world.vocabulary import COLOURS, SHAPES

TEMPLATES = 4


def describe(scene: Scene, template: int) -> str:
    """The caption of a scene by one of ``TEMPLATES`` patterns."""
    hero, *others = scene.solids
    floor = f"on {_a(scene.floor_name)} floor"
    wall = f"before {_a(scene.wall_name)} wall"
    company = " and ".join(f"{_relation(scene, hero, other)} {_name(other)}" for other in others)
    patterns = (company or wall, f"{company} {floor}".strip(), floor, f"{floor} {wall}")
    return f"{_name(hero)} {patterns[template]}"


def _relation(scene: Scene, hero: Solid, other: Solid) -> str:
    near, far = (scene.camera.depth(*solid.centre) for solid in (hero, other))
    eye = scene.camera.position[0]
    # Picture coordinates: sideways distance over depth.
    offset = (other.x - eye) / far - (hero.x - eye) / near
    if abs(offset) < 0.75 * (hero.footprint / near + other.footprint / far) and near < far:
        return "in front of"
    return "to the left of" if offset > 0 else "to the right of"


def _name(solid: Solid) -> str:
    return f"{_a(COLOURS[solid.colour])} {SHAPES[solid.shape]}"


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
