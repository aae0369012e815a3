"""Options of the backend; this module does not import torch."""

from __future__ import annotations

import math

import attrs

__all__ = ["DiffusersOptions"]


def _finite(instance: object, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")


@attrs.frozen(kw_only=True)
class DiffusersOptions:
    """Options of the backend `diffusers`.

    Attributes:
        cfg: Guidance scale s of classifier-free guidance, u + s (c - u), with c the output for the
            prompt and u that for the negative prompt; 1 uses only the prompt. None for the default
            of the pipeline's family. For Flux, the number that its network is told.
        negative: Prompt of u; by default the empty one.
        vae: Folder of another decoder for the same latents, such as an `AutoencoderTiny`.
        size: Side of the images in pixels; None for the size that the pipeline draws by default.
    """

    cfg: float | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(float),
        validator=_finite,
        metadata={"compared": False},  # experts learn from images without prompts
    )
    negative: str = attrs.field(default="", metadata={"compared": False})
    vae: str | None = None
    size: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
