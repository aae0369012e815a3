"""Strips of example images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.files import replacing

__all__ = ["EXAMPLES", "write_strip"]

EXAMPLES = 8
"""Images in a strip."""

_TILE = 64  # pixels; narrower pictures are enlarged
_GAP = 4


def write_strip(path: Path, lines: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
    """Write pictures as a PNG whose bytes are the same every time.

    Args:
        path: The file.
        lines: Lines of pictures, each (h, w, 3).

    Raises:
        PpapError: If it cannot be written.
    """
    width = max(_TILE, *(picture.shape[1] for line in lines for picture in line))
    tiles = [[_enlarged(picture, width) for picture in line] for line in lines]
    heights = [max(tile.height for tile in line) for line in tiles]
    columns = max(len(line) for line in tiles)
    size = columns * (width + _GAP) - _GAP, sum(heights) + (len(heights) - 1) * _GAP
    strip = Image.new("RGBA", size)  # transparent between the pictures
    top = 0
    for line, height in zip(tiles, heights, strict=True):
        for column, tile in enumerate(line):
            strip.paste(tile, (column * (width + _GAP), top))
        top += height + _GAP
    with replacing(path) as temporary:
        strip.save(temporary, "PNG")


def _enlarged(picture: NDArray[np.uint8], width: int) -> Image.Image:
    """As wide as there is room, by a whole number, so that pixels stay squares."""
    image = Image.fromarray(picture)
    factor = max(1, width // image.width)
    return image.resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST
    ).convert("RGBA")
