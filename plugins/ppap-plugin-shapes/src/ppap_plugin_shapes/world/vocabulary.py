"""Names and colours of the objects in scenes."""

from __future__ import annotations

SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone")

# sRGB albedos. Shading keeps the hue, so distinct hues keep colours distinct.
PAINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.10, 0.13),
    "orange": (0.97, 0.49, 0.04),
    "yellow": (0.97, 0.86, 0.12),
    "green": (0.15, 0.64, 0.20),
    "cyan": (0.14, 0.78, 0.84),
    "blue": (0.11, 0.26, 0.84),
    "purple": (0.56, 0.16, 0.74),
    "white": (0.94, 0.94, 0.93),
}
COLOURS: tuple[str, ...] = tuple(PAINTS)

# Floors and walls: muted, and darker than the white paint.
TONES: dict[str, tuple[float, float, float]] = {
    "sandy": (0.78, 0.70, 0.55),
    "slate": (0.47, 0.54, 0.62),
    "mossy": (0.55, 0.62, 0.48),
    "rosy": (0.76, 0.60, 0.60),
    "lilac": (0.64, 0.59, 0.72),
    "mint": (0.60, 0.72, 0.65),
    "misty": (0.58, 0.68, 0.78),
    "clay": (0.66, 0.52, 0.45),
}

CLASS_NAMES: tuple[str, ...] = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""Names of the hero's class, ``shape * len(COLOURS) + colour``."""

SEGMENTATION_NAMES: tuple[str, ...] = ("wall", "floor", *SHAPES)
