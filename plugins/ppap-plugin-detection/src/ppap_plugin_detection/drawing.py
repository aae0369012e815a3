"""Draws boxes with class names over pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import attrs
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["Found", "draw_boxes"]

_SIDE = 192  # least side of a drawing, in pixels
_PAPER, _INK = (236, 236, 239), (255, 255, 255)
_GOLDEN = 0.6180339887498949


@attrs.frozen
class Found:
    """A box to draw: class, corners in fractions of the picture, and what is written on it."""

    kind: int
    corners: Sequence[float]
    words: str


def draw_boxes(found: Sequence[Found], picture: Tensor | None, size: tuple[int, int]) -> Tensor:
    """A picture, (3, H, W) in [-1, 1], enlarged if it is small, with boxes of one colour for each
    class: (3, h, w), float32 in [-1, 1], on the CPU. Without a picture they are on plain paper of
    the proportions of `size`, (H, W).
    """
    height, width = size if picture is None else picture.shape[-2:]
    factor = max(1, -(-_SIDE // max(height, width)))
    if picture is None:
        canvas = Image.new("RGB", (factor * width, factor * height), _PAPER)
    else:
        pixels = (picture.detach().float().cpu().clamp(-1, 1) + 1).mul(127.5).round()
        canvas = Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())
        canvas = canvas.resize((factor * width, factor * height), Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    edge = max(2, max(canvas.size) // 96)
    for each in found:
        x1, y1, x2, y2 = (
            round(min(max(value, 0.0), 1.0) * (side - 1))
            for value, side in zip(each.corners, canvas.size * 2, strict=True)
        )
        colour = _colour(each.kind)
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), None, colour, edge)
        left, top = min(x1, x2), max(0, min(y1, y2) - 15)
        left = max(0, min(left, canvas.width - int(font.getlength(each.words)) - 6))
        pen.rectangle((left, top, left + font.getlength(each.words) + 5, top + 15), colour)
        pen.text((left + 3, top), each.words, _INK, font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 127.5 - 1


def _colour(kind: int) -> tuple[int, int, int]:
    """Dark enough for white letters; hues of neighbouring classes are far apart."""
    red, green, blue = colorsys.hsv_to_rgb(kind * _GOLDEN % 1.0, 0.9, 0.68)
    return round(255 * red), round(255 * green), round(255 * blue)
