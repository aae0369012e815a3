"""What a segmentation guide is aimed at: a mask of class indices, from whatever a user gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ppap_framework.components import TargetInput
from ppap_framework.errors import UsageError

__all__ = ["IGNORED", "mask_from", "picture_from"]

IGNORED = -1
"""In a target, a pixel that does not count."""

_SHOWN = 8  # indices in a message


def picture_from(given: TargetInput, kind: Literal["auto", "mask", "picture"]) -> Tensor | None:
    """The picture in which the classes are still to be found, or None where it is a mask.

    Args:
        given: An image or an array.
        kind: What it is; "auto" takes an image in colours for a picture.

    Returns:
        (1, 3, H, W) in [-1, 1].

    Raises:
        UsageError: Where an array is said to be a picture.
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


def mask_from(given: TargetInput, names: Sequence[str], ignore_index: int, largest: int) -> Tensor:
    """The classes in an indexed or grey image, or in an array (H, W) or (B, H, W).

    Args:
        given: An image or an array.
        names: Of the K classes.
        ignore_index: The index of pixels that do not count.
        largest: Sides above it are reduced to it, by nearest neighbour, since a network of that
            size sees no more.

    Returns:
        (B, h, w), int64 in [0, K), or `IGNORED`.

    Raises:
        UsageError: Where it is no mask, holds indices that are neither a class nor `ignore_index`,
            or nothing that counts; the message names them.
    """
    source = repr(given.source or "the target")
    numbers = _numbers(given, source)
    values = numbers.to(torch.int64)
    if bool((values != numbers).any()):
        raise UsageError(
            f"the mask {source} holds numbers that are not whole", hint=_range(names, ignore_index)
        )
    counts = values != ignore_index
    found = torch.unique(values[counts]).tolist()
    unknown = [index for index in found if not 0 <= index < len(names)]
    if unknown:
        listed = ", ".join(map(str, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        picture = "; for a picture, add --guider-option target_kind=picture"
        raise UsageError(
            f"the mask {source} holds {len(unknown)} indices that are no class: {listed}",
            hint=_range(names, ignore_index) + (picture if given.image is not None else ""),
        )
    if not found:
        raise UsageError(
            f"the mask {source} holds nothing but pixels to leave out",
            hint=_range(names, ignore_index),
        )
    mask = torch.where(counts, values, IGNORED)
    size = (min(mask.shape[-2], largest), min(mask.shape[-1], largest))
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask[:, None].double(), size, mode="nearest-exact")[:, 0].long()
    return mask


def _numbers(given: TargetInput, source: str) -> Tensor:
    """(B, H, W), of any numeric type."""
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
    """The numbers in an image without colours of its own, (H, W); None where it has some.

    Grey images of 8 bits come as RGB with three equal channels.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels
    first: np.ndarray = pixels[..., 0]
    grey = (pixels[..., 1] == first).all() and (pixels[..., 2] == first).all()
    return first if grey else None


def _range(names: Sequence[str], ignore_index: int) -> str:
    last = len(names) - 1
    return (
        f"classes are 0 ({names[0]}) to {last} ({names[last]}), and {ignore_index} is left out, "
        "which --guider-option ignore_index=N changes"
    )
