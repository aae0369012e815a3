"""Strips of images, so that readers see what rows look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.evaluation.files import replacing

__all__ = ["EXAMPLES", "write_strip"]

EXAMPLES = 8
"""Images in a strip."""

_TILE = 64  # pixels: smaller ones are enlarged
_GAP = 4


def write_strip(path: Path, lines: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
    """Write pictures as a PNG, the same bytes every time.

    Args:
        path: Of the file.
        lines: Of pictures, each (h, w, 3), from left to right; each line below the one before it.

    Raises:
        PpapError: Where it cannot be written.
    """
    tiles = [[_enlarged(picture) for picture in line] for line in lines]
    width = max(tile.width for line in tiles for tile in line)
    height = max(tile.height for line in tiles for tile in line)
    columns = max(len(line) for line in tiles)
    size = columns * (width + _GAP) - _GAP, len(tiles) * (height + _GAP) - _GAP
    strip = Image.new("RGBA", size)  # nothing between them, on whatever page it stands
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            strip.paste(tile, (column * (width + _GAP), row * (height + _GAP)))
    replacing(path, lambda partial: strip.save(partial, "PNG"))


def _enlarged(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    factor = -(-_TILE // max(image.size))
    return image.resize(
        (image.width * factor, image.height * factor), Image.Resampling.NEAREST
    ).convert("RGBA")
