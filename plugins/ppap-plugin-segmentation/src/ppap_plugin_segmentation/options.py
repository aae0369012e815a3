"""The options of this distribution's components; importing them imports no torch."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
from attrs.validators import and_, gt, in_, instance_of, optional

_KINDS = ("auto", "mask", "picture")


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
            "owner/name" on the hub. With a checkpoint it says what the
            checkpoint is of, where that does not say so itself.
        size: The side in pixels to which images are resized before the network sees them, in place
            of what the network was trained with.
        ignore_index: In a mask, the index of pixels that do not count.
        target_kind: What a target file is: a "picture", in which the network finds the classes, or
            a "mask" of class indices. "auto" takes indexed and grey ones for masks.
        mask_classes: What the indices of a mask mean, by the network's own names: "floor,red cube"
            for 0 and 1, or "3=floor,7=red cube". None: the network's own numbers.
    """

    model: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    size: int | None = attrs.field(default=None, validator=_size)
    ignore_index: int = attrs.field(default=255, validator=instance_of(int))
    target_kind: Literal["auto", "mask", "picture"] = attrs.field(
        default="auto", validator=in_(_KINDS)
    )
    mask_classes: str | None = attrs.field(default=None, validator=optional(instance_of(str)))


@attrs.frozen(kw_only=True)
class SegmentationCrossEntropyOptions:
    """Options of the task loss `segmentation-cross-entropy`.

    Attributes:
        temperature: Divides the teacher's logits in knowledge transfer. Below 1 it sharpens the
            teacher. Then a student that repeats its teacher is not at the minimum, which at 1 it
            is.
    """

    temperature: float = attrs.field(default=1.0, converter=float, validator=_positive)
