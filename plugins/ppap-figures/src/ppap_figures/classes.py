"""Drawings of the likeliest classes, for guides that classify."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ppap_framework.author import from_uint8, to_pil

_WIDTH, _HEIGHT, _MARGIN = 288, 144, 8  # of a drawing, in pixels
_PAPER, _INK, _FAINT, _BAR = (255, 255, 255), (28, 28, 32), (225, 227, 232), (52, 101, 164)


def draw_top_classes(logits: Tensor, images: Tensor, names: Sequence[str], k: int = 5) -> Tensor:
    """Each image, (B, 3, H, W) in [-1, 1], beside bars of its `k` likeliest classes of K, with
    names and probabilities: (B, 3, 144, 288), float32 in [-1, 1], on the CPU.

    `logits` are (B, K). Of several names of a class, separated by commas, the first is drawn.
    """
    top = logits.detach().float().softmax(-1).cpu().topk(min(k, len(names)), dim=-1)
    rows = zip(to_pil(images), top.indices.tolist(), top.values.tolist(), strict=True)
    drawn = [
        _draw(picture, [(names[i].split(",")[0], p) for i, p in zip(classes, values, strict=True)])
        for picture, classes, values in rows
    ]
    return from_uint8(np.stack(drawn))


def _draw(picture: Image.Image, bars: list[tuple[str, float]]) -> NDArray[np.uint8]:
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    pen = ImageDraw.Draw(canvas)
    side = _HEIGHT - 2 * _MARGIN
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Small pictures keep their pixels, large ones are averaged.
    filter_ = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    corner = (_MARGIN + (side - size[0]) // 2, _MARGIN + (side - size[1]) // 2)
    canvas.paste(picture.resize(size, filter_), corner)

    left, right = 2 * _MARGIN + side, _WIDTH - _MARGIN
    pitch = side / len(bars)
    font = ImageFont.load_default(min(12, max(6, pitch * 0.5)))
    for row, (name, probability) in enumerate(bars):
        top = _MARGIN + row * pitch
        figure = f"{probability:.2f}"
        room = right - left - font.getlength(f"  {figure}")
        pen.text((left, top), _cut(name, room, font), _INK, font)
        pen.text((right, top), figure, _INK, font, anchor="ra")
        y0, y1 = top + pitch * 0.62, top + pitch * 0.82
        pen.rectangle((left, y0, right, y1), fill=_FAINT)
        if (end := left + probability * (right - left)) >= left + 1:
            pen.rectangle((left, y0, end, y1), fill=_BAR)
    return np.asarray(canvas)


def _cut(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    end = ""
    while text and font.getlength(text + end) > room:
        text, end = text[:-1].rstrip(), "…"
    return text + end
