"""Class names, and drawings of the likeliest classes, shared by all guides that classify."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ppap_framework.components import Target, TargetInput
from ppap_framework.errors import UsageError
from ppap_framework.pixels import from_uint8, to_pil

__all__ = ["class_target", "describe_top_class", "draw_top_classes", "find_class"]

_SHOWN = 8  # candidates in a message

_WIDTH, _HEIGHT, _MARGIN = 288, 144, 8  # of a drawing, in pixels
_PAPER, _INK, _FAINT, _BAR = (255, 255, 255), (28, 28, 32), (225, 227, 232), (52, 101, 164)


def find_class(text: str, names: Sequence[str], *, is_index: bool = False) -> int:
    """The class that a text means: a name, an index, one of several names, or an unambiguous part.
    The result is its index in the `names` of all K classes.

    Case does not matter, and hyphens and underscores count as spaces. If a name consists of several
    separated by commas, as in ImageNet ("tench, Tinca tinca"), each is accepted. Whole words go
    before other parts: if there is a "hen", it is not the "hen-of-the-woods". A text that
    `is_index` is no name, even if a class is called "3". UsageError if the text means no class or
    several; the hint lists what is close.
    """
    wanted = _plain(text)
    if not wanted:
        raise UsageError("the class to aim at is empty", hint=_examples(names))
    plain = [_plain(name) for name in names]
    if (is_index or wanted not in plain) and re.fullmatch(r"[+-]?[0-9]{1,18}", wanted):
        if 0 <= int(wanted) < len(names):
            return int(wanted)
        fault = f"there is no class {int(wanted)}: they are numbered from 0 to {len(names) - 1}"
        raise UsageError(fault, hint=_examples(names))
    part = re.escape(wanted)
    for pattern in (rf"\A{part}\Z", rf"(\A|, ){part}(, |\Z)", rf"(?<!\w){part}(?!\w)", part):
        found = [index for index, name in enumerate(plain) if re.search(pattern, name)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{names[index]!r} ({index})" for index in found[:_SHOWN])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            fault = f"class {text!r} is ambiguous: {len(found)} of {len(names)} classes match"
            raise UsageError(fault, hint=f"type the name or the number of one of {listed}{more}")
    whole: dict[str, str] = {}  # class by each of its names and their words
    for name, simple in zip(names, plain, strict=True):
        for word in (simple, *simple.split(", "), *simple.split()):
            whole.setdefault(word, repr(name))
    close = difflib.get_close_matches(wanted, whole, n=3, cutoff=0.6)
    listed = ", ".join(dict.fromkeys(whole[match] for match in close))
    hint = f"did you mean {listed}?" if close else _examples(names)
    raise UsageError(f"there is no class {text[:60]!r} among {len(names)}", hint=hint)


def class_target(
    given: TargetInput, names: Sequence[str], look: Callable[[Tensor], Tensor] | None = None
) -> Target:
    """The class to aim at, or one for each image of a batch: `value` is (1,) or (B,), int64.

    It is given as text, as in `find_class`; as an array of class indices, () or (B,); or as a
    picture, whose class is predicted by `look`, a function from images (1, 3, H, W) in [-1, 1] to
    logits (1, K). UsageError for anything else.
    """
    if given.image is not None and look is not None:
        picture = given.pixels()
        with torch.no_grad():
            index = int(look(picture[None])[0].argmax())
        seen = f"{_first_name(names[index])}{given.source and f', as in {given.source}'}"
        return Target(value=torch.tensor([index]), label=seen, picture=picture)
    if given.text is not None:
        index = find_class(given.text, names, is_index=given.is_index)
        return Target(value=torch.tensor([index]), label=_first_name(names[index]))
    if given.array is None or given.array.ndim > 1 or given.array.numel() == 0:
        what = "a picture" if given.array is None else f"an array of {tuple(given.array.shape)}"
        fault = f"a classifier cannot aim at {what}{given.source and f' ({given.source})'}"
        raise UsageError(fault, hint=_examples(names))
    numbers = given.array.reshape(-1)
    value = numbers.to(torch.int64)
    if bool(((value != numbers) | (value < 0) | (value >= len(names))).any()):
        fault = f"target classes must be whole numbers from 0 to {len(names) - 1}"
        raise UsageError(fault, hint=_examples(names))
    distinct = list(set(value.tolist()))
    label = _first_name(names[distinct[0]]) if len(distinct) == 1 else f"{len(distinct)} classes"
    return Target(value=value, label=label)


def describe_top_class(logits: Tensor, names: Sequence[str]) -> list[str]:
    """First name and probability of the likeliest class, "red cube 0.97"; logits are (B, K)."""
    return [f"{name} {probability:.2f}" for [(name, probability)] in _top(logits, names, 1)]


def draw_top_classes(logits: Tensor, images: Tensor, names: Sequence[str], k: int = 5) -> Tensor:
    """Each image, (B, 3, H, W) in [-1, 1], beside bars of its `k` likeliest classes of K, with
    names and probabilities: (B, 3, 144, 288), float32 in [-1, 1], on the CPU.
    """
    pairs = zip(to_pil(images), _top(logits, names, k), strict=True)
    return from_uint8(np.stack([_draw(picture, bars) for picture, bars in pairs]))


def _top(logits: Tensor, names: Sequence[str], k: int) -> Iterable[list[tuple[str, float]]]:
    top = logits.detach().float().softmax(-1).cpu().topk(min(k, len(names)), dim=-1)
    for index, values in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        yield [(_first_name(names[i]), p) for i, p in zip(index, values, strict=True)]


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


def _plain(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w)[_-]+(?=\w)", " ", name).casefold().split())


def _first_name(name: str) -> str:
    return name.split(",")[0]


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"type a class by name or number: {shown}{', ...' if len(names) > 3 else ''}"
