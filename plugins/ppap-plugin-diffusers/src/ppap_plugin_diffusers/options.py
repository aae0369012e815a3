"""Options of the components; this module does not import torch."""

from __future__ import annotations

import math
from typing import Any

import attrs

__all__ = ["DiffusersOptions", "StemOptions"]


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


def _shape(instance: object, attribute: attrs.Attribute[Any], value: tuple[int, ...]) -> None:
    if len(value) != 3 or any(type(side) is not int or side < 1 for side in value):
        raise ValueError(f"must be three whole numbers from 1, not {list(value)}")


@attrs.frozen(kw_only=True)
class StemOptions:
    """Options of the adapter `stem`. A training sets the shapes.

    Attributes:
        latents: (C, h, w) of the latents.
        images: (3, H, W) of their images.
        width: Channels of the hidden layers.
    """

    latents: tuple[int, ...] = attrs.field(
        default=(4, 64, 64), converter=tuple[int, ...], validator=_shape
    )
    images: tuple[int, ...] = attrs.field(
        default=(3, 512, 512), converter=tuple[int, ...], validator=_shape
    )
    width: int = attrs.field(default=64, validator=attrs.validators.ge(1))
