"""Targets of a segmentation guide: masks of class indices from images and arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, final

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ppap_framework.author import TargetInput, UsageError, find_class

__all__ = ["IGNORED", "MaskClasses", "mask_from", "picture_from"]

IGNORED = -1
"""Class of target pixels to ignore."""

_SHOWN = 8  # most indices in a message


def picture_from(given: TargetInput, kind: Literal["auto", "mask", "picture"]) -> Tensor | None:
    """The picture for the network to segment, or None if the input is a mask.

    Args:
        given: An image or an array.
        kind: Kind of the input; "auto" treats a colour image as a picture.

    Returns:
        (1, 3, H, W) in [-1, 1].

    Raises:
        UsageError: If the input is an array and `kind` is "picture".
    """
    if given.image is None:
        if kind == "picture":
            raise UsageError(
                f"{given.source!r} is an array, not a picture", hint="give a picture, such as a PNG"
            )
        return None
    if kind == "mask" or (kind == "auto" and _indices(given.image) is not None):
        return None
    image = given.image
    if image.mode.startswith("I"):
        pixels = np.repeat(np.asarray(image).astype(np.float32)[..., None] / 257, 3, axis=2)
    else:
        pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


@final
@attrs.frozen(kw_only=True)
class MaskClasses:
    """Meaning of the indices in masks.

    Attributes:
        classes: The network's class for each mask index.
        names: Names of the network's K classes.
        ignore_index: Mask index of pixels to ignore.
    """

    classes: Mapping[int, int]
    names: Sequence[str]
    ignore_index: int

    @classmethod
    def read(cls, stated: str | None, names: Sequence[str], ignore_index: int) -> MaskClasses:
        """Parse comma-separated class names, for indices 0, 1, ... or as "index=name".

        Raises:
            UsageError: If a class is unknown, or an index is invalid or repeated.
        """
        classes = {index: index for index in range(len(names))}
        if stated is not None:
            classes = {}
            for place, part in enumerate(stated.split(",")):
                before, equals, name = part.rpartition("=")
                index = before.strip() if equals else str(place)
                if not re.fullmatch(r"[0-9]{1,9}", index) or int(index) in classes:
                    raise UsageError(
                        f"{index!r} in mask_classes is not an index of its own",
                        hint="type names alone, or such as 3=floor,7=wall",
                    )
                classes[int(index)] = find_class(name, names)
        return cls(classes=classes, names=names, ignore_index=ignore_index)

    def said(self) -> str:
        """Description for hints."""
        rows = [f"{index} ({self.names[number]})" for index, number in sorted(self.classes.items())]
        listed = f"{rows[0]} to {rows[-1]}" if len(rows) > _SHOWN else ", ".join(rows)
        return (
            f"classes are {listed}, and {self.ignore_index} is left out, which --guider-option "
            "mask_classes=NAMES and ignore_index=N change"
        )


def mask_from(given: TargetInput, classes: MaskClasses, largest: int) -> Tensor:
    """Read classes from an indexed or grey image, or an array (H, W) or (B, H, W).

    Args:
        given: An image or an array.
        classes: Meaning of its indices.
        largest: Longest side in pixels, the resolution of the network; larger masks are reduced by
            nearest neighbour.

    Returns:
        (B, h, w), int64 in [0, K), or `IGNORED`.

    Raises:
        UsageError: If the input is no mask, has unknown indices, or only ignored pixels.
    """
    source = repr(given.source or "the target")
    numbers = _numbers(given, source)
    values = numbers.to(torch.int64)
    if bool((values != numbers).any()):
        raise UsageError(f"the mask {source} holds numbers that are not whole", hint=classes.said())
    counts = values != classes.ignore_index
    found = torch.unique(values[counts]).tolist()
    unknown = [index for index in found if index not in classes.classes]
    if unknown:
        listed = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        picture = "; for a picture, add --guider-option target_kind=picture"
        raise UsageError(
            f"the mask {source} holds {len(unknown)} indices that are no class: {listed}",
            hint=classes.said() + (picture if given.image is not None else ""),
        )
    if not found:
        raise UsageError(
            f"the mask {source} holds nothing but pixels to leave out",
            hint=classes.said(),
        )
    mask = torch.full_like(values, IGNORED)
    for index in found:
        mask[values == index] = classes.classes[index]
    size = (min(mask.shape[-2], largest), min(mask.shape[-1], largest))
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask[:, None].double(), size, mode="nearest-exact")[:, 0].long()
    return mask


def _numbers(given: TargetInput, source: str) -> Tensor:
    """Indices (B, H, W) of any numeric type."""
    if given.image is not None:
        indices = _indices(given.image)
        if indices is None:
            raise UsageError(
                f"{source} is a picture in colours, not a mask",
                hint="save class indices as an indexed or grey PNG, or as .npy",
            )
        return torch.from_numpy(indices.astype(np.int64))[None]
    assert given.array is not None
    if given.array.ndim == 2:
        return given.array[None]
    if given.array.ndim == 3:
        return given.array
    raise UsageError(
        f"a mask cannot have the shape {tuple(given.array.shape)} of {source}",
        hint="give (H, W), or (B, H, W) with one for each image",
    )


def _indices(image: Image.Image) -> np.ndarray | None:
    """The indices (H, W) of an indexed or grey image; None for a colour image.

    8-bit grey images arrive as RGB with three equal channels.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels
    first: np.ndarray = pixels[..., 0]
    grey = (pixels[..., 1] == first).all() and (pixels[..., 2] == first).all()
    return first if grey else None
