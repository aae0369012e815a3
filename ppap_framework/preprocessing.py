"""Preprocessing of images, and guides that can exchange it.

Experts that were trained elsewhere may need other preprocessing than the network they were made
from. Their file then states it, and a `PreprocessingGuide` applies it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from typing import Any, Literal, final

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import in_, instance_of
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel
from ppap_framework.errors import AssetError

__all__ = ["ImageInput", "Preprocessing", "PreprocessingGuide"]


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)


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

    Raises:
        ValueError: If a value is invalid.
    """

    size: int | None = attrs.field()
    mean: tuple[float, ...] = attrs.field(converter=_floats)
    std: tuple[float, ...] = attrs.field(converter=_floats)
    interpolation: Literal["bilinear", "bicubic"] = attrs.field(
        validator=in_(("bilinear", "bicubic"))
    )
    antialias: bool = attrs.field(default=True, validator=instance_of(bool))

    @size.validator
    def _check_size(self, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"size must be a whole number from 1 or none, not {value!r}")

    @mean.validator
    @std.validator
    def _check_three(self, attribute: attrs.Attribute[Any], value: Any) -> None:
        lowest, bound = (0, " above 0") if attribute.name == "std" else (-math.inf, "")
        if len(value) != 3 or not all(
            type(x) in (int, float) and lowest < x < math.inf for x in value
        ):
            raise ValueError(
                f"{attribute.name} must be three finite numbers{bound}, not {value!r:.60}"
            )


@final
class ImageInput(nn.Module):
    """Differentiable resizing and normalization.

    Images are shown whole: a center crop would hide the border from guidance. Images of the right
    size are not resized. Nothing is clipped or rounded. Other arguments are as in `Preprocessing`.

    Args:
        multiple: Both sides are resized to the nearest multiple of this.
        reverse: Whether the network wants blue first.

    Raises:
        ValueError: As `Preprocessing`.
    """

    def __init__(
        self,
        *,
        size: int | None,
        mean: Iterable[float] = (0.0, 0.0, 0.0),
        std: Iterable[float] = (1.0, 1.0, 1.0),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        antialias: bool = True,
        multiple: int = 1,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        how = Preprocessing(
            size=size, mean=mean, std=std, interpolation=interpolation, antialias=antialias
        )
        self._how = how if size is None else attrs.evolve(how, size=_nearest(size, multiple))
        self._multiple = multiple
        self._reverse = reverse
        # ((x + 1) / 2 - mean) / std = x scale + shift
        means, stds = (
            torch.tensor(c, dtype=torch.float64)[:, None, None] for c in (how.mean, how.std)
        )
        self._scale: Tensor
        self._shift: Tensor
        self.register_buffer("_scale", (0.5 / stds).float(), persistent=False)
        self.register_buffer("_shift", ((0.5 - means) / stds).float(), persistent=False)

    @property
    def size(self) -> int | None:
        """Side in pixels of the network's square input; None for images as they are."""
        return self._how.size

    def forward(self, images: Tensor) -> Tensor:
        """From (B, 3, H, W) in [-1, 1] to the network's input, (B, 3, h, w)."""
        sides = images.shape[-2:] if self.size is None else (self.size, self.size)
        size = tuple(_nearest(side, self._multiple) for side in sides)
        if images.shape[-2:] != size:
            mode, antialias = self._how.interpolation, self._how.antialias
            images = F.interpolate(images, size, mode=mode, antialias=antialias)
        if self._reverse:
            images = images.flip(1)
        return torch.addcmul(self._shift, images, self._scale)

    def preprocessing(self) -> Preprocessing:
        """The same as a record.

        Raises:
            AssetError: If the network wants blue first, which a record cannot say.
        """
        if self._reverse:
            raise AssetError("the network wants blue first, which this guide cannot give it")
        return self._how


def _nearest(side: int, multiple: int) -> int:
    """The nearest multiple above 0."""
    return max(1, round(side / multiple)) * multiple


class PreprocessingGuide(GuidanceModel):
    """A guide that can exchange the preprocessing of its network."""

    @abc.abstractmethod
    def preprocessed(self, preprocessing: Preprocessing) -> GuidanceModel:
        """A guide around the same network, with other preprocessing."""
