"""Strips of images, so that readers see what rows look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_plugin_bench.files import replacing

__all__ = ["EXAMPLES", "write_strip"]

EXAMPLES = 8
"""Images in a strip."""

_TILE = 64  # pixels a side: narrower ones are enlarged
_GAP = 4


def write_strip(path: Path, lines: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
    """Write pictures as a PNG, the same bytes every time.

    Args:
        path: Of the file.
        lines: Of pictures, each (h, w, 3), from left to right; each line below the one before it.

    Raises:
        PpapError: Where it cannot be written.
    """
    width = max(_TILE, *(picture.shape[1] for line in lines for picture in line))
    tiles = [[_enlarged(picture, width) for picture in line] for line in lines]
    heights = [max(tile.height for tile in line) for line in tiles]
    columns = max(len(line) for line in tiles)
    size = columns * (width + _GAP) - _GAP, sum(heights) + (len(heights) - 1) * _GAP
    strip = Image.new("RGBA", size)  # nothing between them, on whatever page it stands
    top = 0
    for line, height in zip(tiles, heights, strict=True):
        for column, tile in enumerate(line):
            strip.paste(tile, (column * (width + _GAP), top))
        top += height + _GAP
    replacing(path, lambda partial: strip.save(partial, "PNG"))


def _enlarged(picture: NDArray[np.uint8], width: int) -> Image.Image:
    """By a whole number, so that pixels stay squares, as wide as there is room."""
    image = Image.fromarray(picture)
    factor = max(1, width // image.width)
    return image.resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST
    ).convert("RGBA")
