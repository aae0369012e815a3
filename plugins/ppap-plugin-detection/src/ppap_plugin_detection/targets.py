"""Wanted boxes as users give them: words, COCO-style JSON or numbers.

Every reader returns rows (class, x1, y1, x2, y2), in fractions of the image from the top left, or
raises UsageError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppap_framework.author import UsageError, find_class

__all__ = ["from_json", "from_numbers", "from_text", "within"]

Row = tuple[int, float, float, float, float]

_HOW = 'type "CLASS@x1,y1,x2,y2; CLASS@...", with corners from 0,0 (top left) to 1,1'
_JSON_HOW = 'write {"images": [{"width": ..., "height": ...}], "annotations": [...]} as COCO does'
_SHOWN = 60  # characters of a part in messages


def from_text(text: str, names: Sequence[str]) -> list[Row]:
    """Read "red cube@0.1,0.2,0.5,0.6; blue cone@0.5,0.5,0.9,0.9"."""
    rows = []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, at, corners = part.rpartition("@")
        if not at:
            raise UsageError(f"{part[:_SHOWN]!r} says no box", hint=_HOW)
        try:
            x1, y1, x2, y2 = map(float, corners.split(","))
        except ValueError:
            raise UsageError(
                f"the box {corners.strip()[:_SHOWN]!r} of {name[:_SHOWN]!r} is not four numbers",
                hint=_HOW,
            ) from None
        rows.append(_checked(find_class(name, names), x1, y1, x2, y2, part))
    if not rows:
        raise UsageError("the target has no box", hint=_HOW)
    return rows


def from_json(text: str, names: Sequence[str], source: str) -> list[Row]:
    """Read the annotations of one image, as COCO writes them: `bbox` is [x, y, width, height] in
    pixels of the image, whose size `images` states, and the class is a `category` by name, or a
    `category_id` that `categories` names.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source!r} is no JSON: {error}", hint=_JSON_HOW) from error
    try:
        images, notes = content["images"], content["annotations"]
        kinds = {kind["id"]: kind["name"] for kind in content.get("categories", ())}
        width, height = float(images[0]["width"]), float(images[0]["height"])
        found = [(_category(note, kinds), _numbers(note["bbox"])) for note in notes]
    except UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        kind = f"{type(error).__name__}: {error}"
        raise UsageError(f"{source!r} has no boxes as COCO: {kind}", hint=_JSON_HOW) from error
    if len(images) != 1:
        raise UsageError(
            f"{source!r} is of {len(images)} images", hint="give a file of one image's boxes"
        )
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise UsageError(f"{source!r} is of an image of {width:g} x {height:g}", hint=_JSON_HOW)
    rows = []
    for number, (name, box) in enumerate(found):
        if len(box) != 4:
            raise UsageError(f"bbox {number} of {source!r} is not four numbers", hint=_JSON_HOW)
        x, y, w, h = box
        corners = (x / width, y / height, (x + w) / width, (y + h) / height)
        rows.append(_checked(find_class(name, names), *corners, f"{name}, bbox {box}"))
    if not rows:
        raise UsageError(f"{source!r} has no annotations", hint=_JSON_HOW)
    return rows


def _numbers(box: Any) -> list[float]:
    if not isinstance(box, list) or any(isinstance(number, str | bool) for number in box):
        raise TypeError(f"{str(box)[:_SHOWN]!r} is no list of numbers")
    return [float(number) for number in box]


def _category(note: Mapping[str, Any], kinds: Mapping[Any, str]) -> str:
    if "category" in note:
        return str(note["category"])
    if note["category_id"] not in kinds:
        raise UsageError(
            f"no category has the id {note['category_id']!r}", hint='name them in "categories"'
        )
    return str(kinds[note["category_id"]])


def from_numbers(array: Tensor, names: Sequence[str]) -> Tensor:
    """Rows (n, 5), or (B, n, 5) with those of each image; a negative class stands for no box."""
    if array.ndim not in (2, 3) or array.shape[-1] != 5:
        raise UsageError(
            f"boxes cannot be an array of {tuple(array.shape)}",
            hint="give rows (class, x1, y1, x2, y2): (n, 5), or (B, n, 5) for B images",
        )
    rows = array.float().reshape(-1, array.shape[-2], 5)
    for row in rows.flatten(0, 1).tolist():
        if not row[0] < 0:
            if row[0] not in range(len(names)):
                raise UsageError(
                    f"there is no class {row[0]:g}",
                    hint=f"the classes are numbered from 0 to {len(names) - 1}",
                )
            kind, x1, y1, x2, y2 = row
            _checked(int(kind), x1, y1, x2, y2, str(row))
    return torch.where(rows[..., :1] < 0, -1.0, rows)


def within(rows: Tensor, queries: int) -> Tensor:
    """The rows (B, n, 5), if a detector of so many queries can find all their boxes."""
    most = int((rows[..., 0] >= 0).sum(-1).max())
    if most > queries:
        raise UsageError(
            f"the target has {most} boxes, and the detector finds at most {queries}",
            hint="leave some out, or use a detector of more queries",
        )
    return rows


def _checked(kind: int, x1: float, y1: float, x2: float, y2: float, shown: str) -> Row:
    shown = shown.strip()[:_SHOWN]
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise UsageError(f"the box {shown!r} has numbers that are not finite", hint=_HOW)
    if x1 >= x2 or y1 >= y2:
        raise UsageError(
            f"the box {shown!r} is inverted or empty",
            hint="give the left, upper, right and lower edge, in this order",
        )
    if min(x1, y1) < 0 or max(x2, y2) > 1:
        raise UsageError(
            f"the box {shown!r} reaches beyond the picture",
            hint="corners are fractions of the picture, from 0,0 (top left) to 1,1",
        )
    return kind, x1, y1, x2, y2
