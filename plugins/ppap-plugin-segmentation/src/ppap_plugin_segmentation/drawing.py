"""Draws segmentations: class colours over the image, and a legend.

The first colours are the colour-blind safe ones of Okabe and Ito (2008, "Color universal design");
the others follow at golden-ratio steps of hue.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["draw_segmentation", "draw_target", "palette"]

_SIDE, _LARGE_SIDE, _LEGEND, _MARGIN = 128, 256, 128, 8  # in pixels
_ROW, _SWATCH, _ROWS = 16, 10, 7
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 28, 32), (96, 98, 104)
_COLOUR = 0.65  # weight of the colours over the grey image
_OKABE_ITO = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (213, 94, 0),
    (240, 228, 66),
)
_GOLDEN = 0.6180339887498949
_APART, _CLOSER = 40.0, 0.98
"""Minimum RGB distance of colours, and its decay factor if no colour is far enough."""


def palette(number: int) -> NDArray[np.uint8]:
    """A colour for each of `number` classes: (number, 3)."""
    colours = [np.array(colour, float) for colour in _OKABE_ITO[:number]]
    apart = _APART
    for index in itertools.count(len(colours)):
        if len(colours) >= number:
            break
        value, saturation = ((0.95, 0.9), (0.6, 0.85), (0.85, 0.45))[index % 3]
        tint = colorsys.hsv_to_rgb(index * _GOLDEN % 1.0, saturation, value)
        colour = np.round(255.0 * np.array(tint))
        if min(np.linalg.norm(colour - other) for other in colours) >= apart:
            colours.append(colour)
        else:
            apart *= _CLOSER
    return np.array(colours).astype(np.uint8).reshape(number, 3)


def draw_segmentation(classes: Tensor, images: Tensor, names: Sequence[str]) -> Tensor:
    """Class colours over each grey image, with a legend of the largest classes below.

    Args:
        classes: (B, h, w), int64; other numbers than classes are white.
        images: (B, 3, H, W) in [-1, 1].
        names: Names of the K classes.

    Returns:
        (B, 3, side + legend, side), float32 in [-1, 1], on the CPU. The side is 256 for images of
        at least 256 pixels, else 128; the legend is as high as K classes need, at most 128.
    """
    numbers = classes.detach().cpu().numpy()
    pixels = _to_uint8(images)
    drawings = [_draw_below(n, picture, names) for n, picture in zip(numbers, pixels, strict=True)]
    return torch.stack([_from_uint8(drawing) for drawing in drawings])


def draw_target(classes: Tensor, picture: Tensor | None, names: Sequence[str]) -> Tensor:
    """A mask with its legend and, on its left, the picture that it was predicted from.

    Args:
        classes: (h, w), int64; other numbers than classes are white.
        picture: (3, H, W) in [-1, 1], or None.
        names: Names of the K classes.

    Returns:
        (3, side, 2 side + 128), or (3, side, side + 128) without a picture; float32 in [-1, 1].
        The side is as for `draw_segmentation`.
    """
    numbers = classes.cpu().numpy()
    pixels = None if picture is None else _to_uint8(picture[None])[0]
    tiles = [_overlay(numbers, pixels, len(names))]
    if pixels is not None:
        tiles.insert(0, Image.fromarray(pixels))
    side = _side(*tiles[0].size)
    canvas = Image.new("RGB", (len(tiles) * side + _LEGEND, side), _PAPER)
    for place, tile in enumerate(tiles):
        canvas.paste(_fitted(tile, side), (place * side, 0))
    _draw_legend(canvas, (len(tiles) * side + _MARGIN, 0), numbers, names)
    return _from_uint8(np.asarray(canvas))


def _draw_below(
    classes: NDArray[np.int64], picture: NDArray[np.uint8], names: Sequence[str]
) -> NDArray[np.uint8]:
    rows, side = min(len(names), _ROWS + 1), _side(*picture.shape[:2])
    canvas = Image.new("RGB", (side, side + rows * _ROW), _PAPER)
    canvas.paste(_fitted(_overlay(classes, picture, len(names)), side), (0, 0))
    _draw_legend(canvas, (0, side), classes, names)
    return np.asarray(canvas)


def _draw_legend(
    canvas: Image.Image,
    corner: tuple[int, int],
    classes: NDArray[np.int64],
    names: Sequence[str],
) -> None:
    """Draw names and shares of the largest classes, from a corner to the right edge."""
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    colours = palette(len(names))
    rows = _shares(classes, names)
    left, right = corner[0], canvas.width - 2
    for place, (index, share) in enumerate(rows[:_ROWS]):
        top = corner[1] + 1 + place * _ROW
        fill = _rgb(colours[index]) if index >= 0 else _PAPER
        box = (left, top + 2, left + _SWATCH, top + 2 + _SWATCH)
        pen.rectangle(box, fill=fill, outline=_FAINT)
        figure = "<1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
        name = names[index].split(",")[0] if index >= 0 else "left out"
        start = left + _SWATCH + 5
        room = right - start - font.getlength(f" {figure}")
        pen.text((start, top), _cut(name, room, font), _INK, font)
        pen.text((right, top), figure, _FAINT, font, anchor="ra")
    if len(rows) > _ROWS:
        more = f"and {len(rows) - _ROWS} more"
        top = corner[1] + 1 + _ROWS * _ROW
        pen.text((left, top), more, _FAINT, ImageFont.load_default(11))


def _overlay(
    classes: NDArray[np.int64], picture: NDArray[np.uint8] | None, number: int
) -> Image.Image:
    """Class colours, over the grey picture if given."""
    colours = np.concatenate([palette(number), np.full((1, 3), 255, np.uint8)])
    painted = Image.fromarray(colours[np.where((classes >= 0) & (classes < number), classes, -1)])
    if picture is None:
        return painted
    size = (
        max(picture.shape[1], classes.shape[1]),
        max(picture.shape[0], classes.shape[0]),
    )
    grey = Image.fromarray(picture).convert("L").convert("RGB")
    grey = grey.resize(size, Image.Resampling.NEAREST)
    return Image.blend(grey, painted.resize(size, Image.Resampling.NEAREST), _COLOUR)


def _shares(classes: NDArray[np.int64], names: Sequence[str]) -> list[tuple[int, float]]:
    """Classes and their shares of the pixels, largest first; -1 is no class."""
    known = np.where((classes >= 0) & (classes < len(names)), classes, -1)
    indices, counts = np.unique(known, return_counts=True)
    order = sorted(zip(counts.tolist(), indices.tolist(), strict=True), key=lambda row: -row[0])
    return [(index, count / known.size) for count, index in order]


def _side(*extents: int) -> int:
    """Side of the square for an image of this width and height."""
    return _LARGE_SIDE if max(extents) >= _LARGE_SIDE else _SIDE


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """Resize to fit a square: small pictures by nearest neighbour, others by Lanczos."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.resize(size, method)


def _cut(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _rgb(colour: NDArray[np.uint8]) -> tuple[int, int, int]:
    red, green, blue = colour.tolist()
    return red, green, blue


def _to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3)."""
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return array


def _from_uint8(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to (3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
