"""Preprocessing by a model's preprocessor config."""

from __future__ import annotations

import math
from typing import Any

from ppap_framework.checkpoints import Checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.preprocessing import ImageInput
from ppap_transformers._network import make_config

__all__ = ["make_input"]

_BICUBIC = 3  # number in Pillow and transformers; all others become bilinear


def make_input(model: Checkpoint, *, multiple: int = 1, size: int | None = None) -> ImageInput:
    """Resize and normalization of a model, without crops and padding.

    Missing values are transformers' defaults for this model type.

    Args:
        model: Model from `find_model`.
        multiple: Divisor of both sides, such as the patch size of the network; the preprocessor may
            require a larger one.
        size: Input side in pixels, instead of the preprocessor's.

    Raises:
        AssetError: If the preprocessor is invalid.
        UsageError: If the size is below 1.
    """
    from transformers import IMAGE_PROCESSOR_MAPPING

    if size is not None and size < 1:
        raise UsageError(f"images cannot be resized to {size} pixels")
    config = make_config(model)
    if type(config) not in IMAGE_PROCESSOR_MAPPING:
        raise AssetError(
            f"transformers does not say what images a {config.model_type} wants",
            hint="name another model",
        )
    processing = IMAGE_PROCESSOR_MAPPING[type(config)]["pil"]  # works without torchvision
    try:
        wanted = processing.from_dict(dict(model.architecture["preprocessor"])).to_dict()
        if size is None and wanted.get("do_resize", True):
            size = _side(wanted.get("size"))
        steps = [int(wanted.get(key) or 1) for key in ("ensure_multiple_of", "size_divisor")]
        normalize = wanted.get("do_normalize")
        rescale = float(wanted.get("rescale_factor", 1 / 255)) if wanted.get("do_rescale") else 1.0
        unit = 255 * rescale  # value of white, in the units of mean and std
        return ImageInput(
            size=size,
            mean=[mean / unit for mean in (wanted["image_mean"] if normalize else [0.0] * 3)],
            std=[std / unit for std in (wanted["image_std"] if normalize else [1.0] * 3)],
            interpolation="bicubic" if wanted.get("resample") == _BICUBIC else "bilinear",
            multiple=math.lcm(multiple, *(max(1, step) for step in steps)),
            reverse=bool(wanted.get("do_flip_channel_order")),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"the preprocessing of {model.name!r} is invalid: {reason}",
            hint="its preprocessor_config.json is damaged",
        ) from error


def _side(size: Any) -> int | None:
    """Side of a square from a transformers size, a number or a mapping."""
    if size is None or isinstance(size, int):
        return size
    keys = ("shortest_edge", "height", "width", "longest_edge")
    return min(int(size[key]) for key in keys if size.get(key))
