"""The options of this distribution's components; importing them imports no torch."""

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
        cfg: The scale s of classifier-free guidance: u + s (c - u), where the network says c with
            the prompt and u without. 1 is the prompt alone.
    """

    cfg: float = attrs.field(default=3.0, converter=float, validator=_finite)
