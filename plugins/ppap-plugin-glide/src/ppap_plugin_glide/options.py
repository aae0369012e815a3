"""Options of the components; this module does not import torch."""

from __future__ import annotations

import math

import attrs

__all__ = ["GlideOptions"]


def _finite(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")


@attrs.frozen(kw_only=True)
class GlideOptions:
    """Options of the backend `glide`.

    Attributes:
        cfg: Guidance scale s of classifier-free guidance, u + s (c - u), with c the output for the
            prompt and u that for the empty prompt. 1 uses only the prompt.
    """

    cfg: float = attrs.field(
        default=3.0,
        converter=float,
        validator=_finite,
        metadata={"compared": False},  # experts learn from images without prompts
    )
