"""What images go through before a network sees them, and guides that can be told so.

A guide has a preprocessing of its own, which nobody else need know. Experts that were trained
elsewhere may have been shown images otherwise than the network they were made of: then their file
says how, and a `PreprocessingGuide` shows them images so.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from typing import Any, Literal, final

import attrs
from attrs.validators import in_, instance_of

from ppap_framework.components import GuidanceModel

__all__ = ["Preprocessing", "PreprocessingGuide"]


def _three(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)


def _check_three(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if len(value) != 3 or not all(type(x) in (int, float) and math.isfinite(x) for x in value):
        raise ValueError(f"{attribute.name} must be three finite numbers, not {value!r:.60}")


def _check_positive(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not all(x > 0 for x in value):
        raise ValueError(f"{attribute.name} must be above 0, not {value!r:.60}")


def _check_size(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{attribute.name} must be a whole number from 1 or none, not {value!r}")


@final
@attrs.frozen(kw_only=True)
class Preprocessing:
    """From images x in [-1, 1] to what a network is fed: (resize((x + 1) / 2) - mean) / std.

    Attributes:
        size: Side in pixels to which images are resized; None for as they come.
        mean: Of the three channels, for images in [0, 1].
        std: Likewise, above 0. A mean and std of 0.5 feed x itself.
        interpolation: Of the resize.
        antialias: Whether the resize averages where it makes images smaller.

    Raises:
        ValueError: For anything else.
    """

    size: int | None = attrs.field(validator=_check_size)
    mean: tuple[float, ...] = attrs.field(converter=_three, validator=_check_three)
    std: tuple[float, ...] = attrs.field(
        converter=_three, validator=[_check_three, _check_positive]
    )
    interpolation: Literal["bilinear", "bicubic"] = attrs.field(
        validator=in_(("bilinear", "bicubic"))
    )
    antialias: bool = attrs.field(default=True, validator=instance_of(bool))


class PreprocessingGuide(GuidanceModel):
    """A guide that can show its network images in another way than its own."""

    @abc.abstractmethod
    def preprocessed(self, preprocessing: Preprocessing) -> GuidanceModel:
        """The same guide around the same network, which is fed so.

        Args:
            preprocessing: In place of the guide's own.
        """
