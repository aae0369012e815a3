"""Options of the components; this module imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, in_, instance_of, optional

Meaning = Literal["disparity", "depth"]
"""Quantity of a map: disparity, larger is nearer, or depth, larger is farther."""

_NOT_COMPARED = {"compared": False}  # with that of experts: weights and input are, targets need not


@attrs.frozen(kw_only=True)
class DepthOptions:
    """Options of the guider `depth`.

    Attributes:
        model: A folder that transformers saved, "owner/name" of the Hugging Face hub, or
            "midas-small", whose weights are a checkpoint. Required for a checkpoint that does not
            name its model.
        size: Input side in pixels, instead of the network's own; rounded to a multiple of its
            patches.
        predicts: Output quantity, "disparity" or "depth", if the model type does not determine it
            or this model differs from its type.
        target_map: Quantity, "disparity" or "depth", of a 16-bit picture or an array given as
            target. In "depth" maps, 0 means unknown, as sensors write it.
    """

    model: str | None = attrs.field(
        default=None, validator=optional(instance_of(str)), metadata=_NOT_COMPARED
    )
    size: int | None = attrs.field(
        default=None, validator=optional([instance_of(int), ge(1)]), metadata=_NOT_COMPARED
    )
    predicts: Literal["disparity", "depth"] | None = attrs.field(
        default=None, validator=optional(in_(("disparity", "depth")))
    )
    target_map: Literal["disparity", "depth"] = attrs.field(
        default="disparity", validator=in_(("disparity", "depth")), metadata=_NOT_COMPARED
    )
