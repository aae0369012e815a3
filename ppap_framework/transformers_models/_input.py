"""What a network wants made of images: size, range and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.preprocessing import Preprocessing
from ppap_framework.transformers_models._files import ModelFiles
from ppap_framework.transformers_models._network import make_config

__all__ = ["ImageInput", "make_input"]

_BICUBIC = 3  # in Pillow's numbering, which transformers took over; all others are bilinear here


@final
class ImageInput(nn.Module):
    """Resize and normalisation as a network's preprocessing states them, differentiable.

    Images are shown whole, without the crop and the padding that some preprocessing has: a crop
    would hide the border from guidance. Resizing is antialiased as Pillow's, and left out where
    the size is right. Nothing is clipped or rounded.

    Args:
        size: Side in pixels of the squares that the network is shown; None for images as they come.
        multiple: Of what both sides must be; sides that are not are resized to the nearest that is.
        mean: Of each channel, in the units of `rescale`.
        std: Likewise.
        rescale: The factor of pixel values from 0 to 255.
        bicubic: How to resize: else bilinearly.
        reverse: Whether the network wants blue first.

    Raises:
        UsageError: For a size or multiple below 1, or not three means and positive deviations.
    """

    def __init__(
        self,
        *,
        size: int | None,
        multiple: int = 1,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        rescale: float = 1 / 255,
        bicubic: bool = False,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        if multiple < 1 or (size is not None and size < 1):
            raise UsageError(f"images cannot be resized to {size} pixels, a multiple of {multiple}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError(f"mean and std must be three numbers each, not {mean} and {std}")
        self.size = None if size is None else _nearest(size, multiple)
        self.multiple = multiple
        self._mode = "bicubic" if bicubic else "bilinear"
        self._reverse = reverse
        # From [-1, 1] by way of [0, 255]: (127.5 (x + 1) rescale - mean) / std = x scale + shift.
        half = torch.full((3,), 127.5 * rescale, dtype=torch.float64)
        mean_, std_ = (torch.tensor(list(c), dtype=torch.float64) for c in (mean, std))
        self._scale: Tensor
        self._shift: Tensor
        self.register_buffer("_scale", (half / std_).float().view(3, 1, 1), persistent=False)
        shift = ((half - mean_) / std_).float().view(3, 1, 1)
        self.register_buffer("_shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """From (B, 3, H, W) in [-1, 1] to (B, 3, h, w) as the network wants it."""
        height, width = images.shape[-2:]
        size = (
            (_nearest(height, self.multiple), _nearest(width, self.multiple))
            if self.size is None
            else (self.size, self.size)
        )
        if (height, width) != size:
            images = F.interpolate(images, size, mode=self._mode, antialias=True)
        if self._reverse:
            images = images.flip(1)
        return torch.addcmul(self._shift, images, self._scale)

    def preprocessing(self) -> Preprocessing:
        """The same as a record, for guides whose preprocessing can be exchanged.

        Raises:
            AssetError: Where the network wants blue first, of which such records know nothing.
        """
        if self._reverse:
            raise AssetError("the network wants blue first, which this guide cannot give it")
        std = 0.5 / self._scale.double().flatten()
        mean = 0.5 - self._shift.double().flatten() * std
        return Preprocessing(
            size=self.size,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            interpolation="bicubic" if self._mode == "bicubic" else "bilinear",
        )


def make_input(files: ModelFiles, *, multiple: int = 1, size: int | None = None) -> ImageInput:
    """The input of a model, by its preprocessing; what that leaves open is as transformers has it
    for this type of model.

    Args:
        files: The model.
        multiple: Of what sides must be for the sake of the network, such as the size of its
            patches; the preprocessing may want more.
        size: Side in pixels of what the network is shown, instead of what its preprocessing says.

    Raises:
        AssetError: Where the preprocessing is stated wrongly.
        UsageError: For a size below 1.
    """
    from transformers import IMAGE_PROCESSOR_MAPPING

    config = make_config(files)
    if type(config) not in IMAGE_PROCESSOR_MAPPING:
        raise AssetError(
            f"transformers does not say what images a {config.model_type} wants",
            hint="name another model",
        )
    processing = IMAGE_PROCESSOR_MAPPING[type(config)]["pil"]  # the one that needs no torchvision
    try:
        wanted = processing.from_dict(dict(files.preprocessor)).to_dict()
        normalize, resize = wanted.get("do_normalize"), wanted.get("do_resize", True)
        steps = (
            multiple,
            *(int(wanted.get(k) or 1) for k in ("ensure_multiple_of", "size_divisor")),
        )
        return ImageInput(
            size=(_side(wanted.get("size")) if resize else None) if size is None else size,
            multiple=math.lcm(*(max(1, step) for step in steps)),
            mean=wanted["image_mean"] if normalize else (0.0, 0.0, 0.0),
            std=wanted["image_std"] if normalize else (1.0, 1.0, 1.0),
            rescale=float(wanted.get("rescale_factor", 1 / 255))
            if wanted.get("do_rescale")
            else 1.0,
            bicubic=wanted.get("resample") == _BICUBIC,
            reverse=bool(wanted.get("do_flip_channel_order")),
        )
    except (UsageError, KeyError, TypeError, ValueError) as error:
        if size is not None and size < 1:
            raise
        reason = error.message if isinstance(error, UsageError) else " ".join(str(error).split())
        raise AssetError(
            f"the preprocessing of {files.name!r} cannot be: {reason[:200]}",
            hint="its preprocessor_config.json is damaged",
        ) from error


def _nearest(side: int, multiple: int) -> int:
    """The multiple that is nearest, at least one of it."""
    return max(1, round(side / multiple)) * multiple


def _side(size: Any) -> int | None:
    """The side of a square, of what transformers calls a size: a number, or a mapping."""
    if size is None:
        return None
    if isinstance(size, int):
        return size
    sides = [
        int(size[k]) for k in ("shortest_edge", "height", "width", "longest_edge") if size.get(k)
    ]
    return min(sides)
