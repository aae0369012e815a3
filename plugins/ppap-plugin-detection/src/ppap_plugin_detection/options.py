"""Options of the components; this module does not import torch."""

from __future__ import annotations

import math
from typing import Any

import attrs
from attrs.validators import and_, ge, gt, instance_of, le, optional

_NOT_COMPARED = {"compared": False}  # with that of experts: weights and input are, targets need not


def _weight(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"must be a number from 0, not {value}")


def _weighing(default: float) -> Any:
    return attrs.field(default=default, converter=float, validator=_weight, metadata=_NOT_COMPARED)


@attrs.frozen(kw_only=True)
class DetectionOptions:
    """Options of the guider `detection`.

    Attributes:
        model: A torchvision model, such as "fcos_resnet50_fpn", which may also be written
            "torchvision/fcos_resnet50_fpn", or a transformers model as the path of a folder or
            "owner/name" on the hub. Required for a checkpoint that does not name its model.
        size: Side in pixels to which images are resized for the network; overrides the network's
            own.
        threshold: Least probability of a detection that is drawn, or found in a picture as target.
    """

    model: str | None = attrs.field(
        default=None, validator=optional(instance_of(str)), metadata=_NOT_COMPARED
    )
    size: int | None = attrs.field(
        default=None, validator=optional(and_(instance_of(int), gt(0))), metadata=_NOT_COMPARED
    )
    threshold: float = attrs.field(
        default=0.3, converter=float, validator=[ge(0), le(1)], metadata=_NOT_COMPARED
    )


@attrs.frozen(kw_only=True)
class BoxesOptions:
    """Options of the task loss `boxes`.

    Attributes:
        class_weight: Weight of the cross-entropy of classes.
        l1_weight: Weight of the L1 distance of boxes, as DETR's lambda_L1.
        iou_weight: Weight of one minus the generalized IoU, as DETR's lambda_iou.
        nothing_weight: Weight of the wish that there is nothing else; 0 allows other objects.
        match_experts: Whether knowledge transfer matches the answers of student and teacher, for
            detectors that sort their queries by score (RT-DETR, D-FINE, RF-DETR, ...). Otherwise
            the same query answers for both.
    """

    class_weight: float = _weighing(1.0)
    l1_weight: float = _weighing(5.0)
    iou_weight: float = _weighing(2.0)
    nothing_weight: float = _weighing(1.0)
    match_experts: bool = attrs.field(
        default=False, validator=instance_of(bool), metadata=_NOT_COMPARED
    )
