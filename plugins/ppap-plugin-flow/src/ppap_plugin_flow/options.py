"""Options of the components; this module does not import torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, gt, in_, instance_of, optional

_NOT_COMPARED = {"compared": False}  # with that of experts: weights and input are, targets need not


@attrs.frozen(kw_only=True)
class FlowOptions:
    """Options of the guider `flow`.

    Attributes:
        model: torchvision's network, "raft_small" or "raft_large".
        size: Side in pixels to which images are resized for the network, at least 32.
        flow: Where points of the reference move: "dx,dy" in its pixels, or the path of a file .flo
            or .npy, (H, W, 2). None: they stand still.
    """

    model: Literal["raft_small", "raft_large"] = attrs.field(
        default="raft_small", validator=in_(("raft_small", "raft_large")), metadata=_NOT_COMPARED
    )
    size: int = attrs.field(
        default=256, validator=[instance_of(int), ge(32)], metadata=_NOT_COMPARED
    )
    flow: str | None = attrs.field(
        default=None, validator=optional(instance_of(str)), metadata=_NOT_COMPARED
    )


@attrs.frozen(kw_only=True)
class CorrespondenceOptions:
    """Options of the task loss `correspondence`.

    Attributes:
        temperature: Divides the cosines of features before the softmax over places.
    """

    temperature: float = attrs.field(
        default=0.1, converter=float, validator=gt(0), metadata=_NOT_COMPARED
    )
