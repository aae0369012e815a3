"""Preprocessing of images, and guides that can exchange it.

Experts that were trained elsewhere may need other preprocessing than the network they were made
from. Their file then states it, and a `PreprocessingGuide` applies it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, final, get_args

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import in_, instance_of, optional
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel
from ppap_framework.errors import must_be

__all__ = ["ImageInput", "Preprocessing", "PreprocessingGuide"]

Interpolation = Literal["bilinear", "bicubic"]


def _three(above: float) -> Callable[[Any], bool]:
    return lambda values: (
        len(values) == 3 and all(type(x) in (int, float) and above < x < math.inf for x in values)
    )


_side = must_be("a whole number from 1", lambda x: type(x) is int and x > 0)
_mean = must_be("three finite numbers", _three(-math.inf))
_std = must_be("three finite numbers above 0", _three(0))


@final
@attrs.frozen(kw_only=True)
class Preprocessing:
    """From images x in [-1, 1] to a network's input: (resize((x + 1) / 2) - mean) / std.

    Attributes:
        size: Side in pixels to which images are resized; None for no resizing.
        mean: Mean of the three channels, for images in [0, 1].
        std: Standard deviation of the channels, above 0. A mean and std of 0.5 pass x itself.
        interpolation: Kind of resizing.
        antialias: Whether pixels are averaged when images become smaller.
    """

    size: int | None = attrs.field(validator=optional(_side))
    mean: Sequence[float] = attrs.field(converter=tuple[float, ...], validator=_mean)
    std: Sequence[float] = attrs.field(converter=tuple[float, ...], validator=_std)
    interpolation: Interpolation = attrs.field(validator=in_(get_args(Interpolation)))
    antialias: bool = attrs.field(default=True, validator=instance_of(bool))


@final
class ImageInput(nn.Module):
    """Differentiable resizing and normalization.

    Images of the right size are not resized. Nothing is clipped or rounded. See `Preprocessing`.

    Args:
        resize: Resizes and crops images (B, 3, H, W) in [-1, 1] as the network's library does.
            `size` then only says to which side. None shows the whole image, resized to a square.
        kept: Share of each side that `resize` shows, by a center crop; above 1 it adds a border.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        *,
        size: int | None,
        mean: Iterable[float] = (0.0, 0.0, 0.0),
        std: Iterable[float] = (1.0, 1.0, 1.0),
        interpolation: Interpolation = "bilinear",
        antialias: bool = True,
        resize: Callable[[Tensor], Tensor] | None = None,
        kept: float = 1.0,
    ) -> None:
        super().__init__()
        self._how = how = Preprocessing(
            size=size, mean=mean, std=std, interpolation=interpolation, antialias=antialias
        )
        self._resize, self.kept = resize, kept
        # ((x + 1) / 2 - mean) / std = x scale + shift
        channels = torch.tensor([how.mean, how.std], dtype=torch.float64)
        means, stds = channels[:, :, None, None]
        self.register_buffer("_scale", (0.5 / stds).float(), persistent=False)
        self.register_buffer("_shift", ((0.5 - means) / stds).float(), persistent=False)

    @property
    def size(self) -> int | None:
        """Side in pixels of the network's square input; None for images as they are."""
        return self._how.size

    def forward(self, images: Tensor) -> Tensor:
        """From (B, 3, H, W) in [-1, 1] to the network's input, (B, 3, h, w)."""
        if self._resize is not None:
            images = self._resize(images)
        elif self.size is not None and images.shape[-2:] != (self.size, self.size):
            mode, antialias = self._how.interpolation, self._how.antialias
            images = F.interpolate(images, (self.size,) * 2, mode=mode, antialias=antialias)
        return torch.addcmul(self._shift, images, self._scale)


class PreprocessingGuide(GuidanceModel):
    """A guide that can exchange the preprocessing of its network."""

    @abc.abstractmethod
    def preprocessed(self, preprocessing: Preprocessing) -> GuidanceModel:
        """A guide around the same network, with other preprocessing."""
