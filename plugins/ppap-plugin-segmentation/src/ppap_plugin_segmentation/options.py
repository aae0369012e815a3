"""Options of the components; this module does not import torch."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
from attrs.validators import and_, gt, in_, instance_of, optional

_KINDS = ("auto", "mask", "picture")
_NOT_COMPARED = {"compared": False}  # with that of experts: weights and input are, targets need not


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"must be a positive number, not {value}")


_size: Any = optional(and_(instance_of(int), gt(0)))


@attrs.frozen(kw_only=True)
class SegmentationOptions:
    """Options of the guider `segmentation`.

    Attributes:
        model: A torchvision model, such as "deeplabv3_resnet50", which may also be written
            "torchvision/deeplabv3_resnet50", or a transformers model as the path of a folder or
            "owner/name" on the hub. Required for a checkpoint that does not name its model.
        size: Side in pixels to which images are resized for the network; overrides the network's
            own.
        ignore_index: Mask index of pixels to ignore.
        target_kind: Kind of a target file: a "picture" for the network to segment, or a "mask" of
            class indices. "auto" treats indexed and grey images as masks.
        mask_classes: The network's class name for each mask index: "floor,red cube" for 0 and 1,
            or "3=floor,7=red cube". None: mask indices are the network's class numbers.
    """

    model: str | None = attrs.field(
        default=None, validator=optional(instance_of(str)), metadata=_NOT_COMPARED
    )
    size: int | None = attrs.field(default=None, validator=_size, metadata=_NOT_COMPARED)
    ignore_index: int = attrs.field(default=255, validator=instance_of(int), metadata=_NOT_COMPARED)
    target_kind: Literal["auto", "mask", "picture"] = attrs.field(
        default="auto", validator=in_(_KINDS), metadata=_NOT_COMPARED
    )
    mask_classes: str | None = attrs.field(
        default=None, validator=optional(instance_of(str)), metadata=_NOT_COMPARED
    )


@attrs.frozen(kw_only=True)
class SegmentationCrossEntropyOptions:
    """Options of the task loss `segmentation-cross-entropy`.

    Attributes:
        temperature: Divides the teacher's logits in knowledge transfer. Below 1 it sharpens the
            teacher, and a student equal to its teacher is no longer the minimum.
    """

    temperature: float = attrs.field(
        default=1.0, converter=float, validator=_positive, metadata=_NOT_COMPARED
    )
