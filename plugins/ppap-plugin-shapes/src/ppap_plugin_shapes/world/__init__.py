"""The embedded world: solids on a floor before a wall, rendered with exact ground truth.

Needs numpy and attrs alone. A scene follows from ``(seed, index)``; batch and size never change it.
"""

from __future__ import annotations

from ppap_plugin_shapes.world.render import Scenes, render
from ppap_plugin_shapes.world.vocabulary import CLASS_NAMES, COLOURS, SEGMENTATION_NAMES, SHAPES

__all__ = ["CLASS_NAMES", "COLOURS", "SEGMENTATION_NAMES", "SHAPES", "Scenes", "render"]
