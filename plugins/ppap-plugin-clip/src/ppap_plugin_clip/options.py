"""Options of the guider; this module imports neither torch nor transformers."""

from __future__ import annotations

import attrs
from attrs.validators import instance_of, optional


@attrs.frozen(kw_only=True)
class ClipTextOptions:
    """Options of the guider `clip-text`.

    Attributes:
        model: A folder that transformers saved, or "owner/name" of the Hugging Face hub. Required
            for a checkpoint that is not in such a folder.
    """

    model: str | None = attrs.field(
        default=None,
        validator=optional(instance_of(str)),
        metadata={"compared": False},  # with that of experts: the weights are
    )
