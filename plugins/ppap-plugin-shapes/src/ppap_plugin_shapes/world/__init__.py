"""The embedded world: solids on a floor before a wall, rendered with exact ground truth.

Needs only numpy and attrs. A scene depends only on ``(seed, index)``, not on batch or size.
"""

from __future__ import annotations

from ppap_plugin_shapes.world.render import Scenes, render
from ppap_plugin_shapes.world.vocabulary import CLASS_NAMES, COLOURS, SEGMENTATION_NAMES, SHAPES

__all__ = ["CLASS_NAMES", "COLOURS", "SEGMENTATION_NAMES", "SHAPES", "Scenes", "render"]
