"""The options of this distribution's components; importing them imports neither torch nor
transformers.
"""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, in_, instance_of, optional

Meaning = Literal["disparity", "depth"]
"""What the numbers of a map are: larger is nearer, or larger is farther."""


@attrs.frozen(kw_only=True)
class DepthOptions:
    """Options of the guider `depth`.

    Attributes:
        model: A folder that transformers saved, or "owner/name" of the Hugging Face hub. With a
            checkpoint it says what the checkpoint is of, where that does not say so itself.
        size: Side in pixels at which the network looks at images, instead of its own; rounded to
            what its patches allow.
        predicts: "disparity" or "depth", what the network's numbers are, where its type does not
            say so or this one was trained otherwise.
        target_map: "disparity" or "depth", what the numbers of a 16-bit picture or an array given
            as target are. Of the second, 0 means unknown, as sensors write it.
    """

    model: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    size: int | None = attrs.field(default=None, validator=optional([instance_of(int), ge(1)]))
    predicts: Literal["disparity", "depth"] | None = attrs.field(
        default=None, validator=optional(in_(("disparity", "depth")))
    )
    target_map: Literal["disparity", "depth"] = attrs.field(
        default="disparity", validator=in_(("disparity", "depth"))
    )
