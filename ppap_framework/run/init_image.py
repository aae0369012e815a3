"""The pictures that images begin with: an init image, and a mask of what is drawn anew.

Sampling begins with the init image, noised to a share of the trajectory (SDEdit, Meng et al. 2021,
arXiv 2108.01073). If there is a mask, its black pixels are kept: see `diffusion.walk`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.files import digest
from ppap_framework.known import Known
from ppap_framework.targets import decode_target

_KINDS = "give a picture: a path, a PIL image, or an array"


@final
@attrs.frozen
class Picture:
    """A picture, (3, H, W), float32 in [-1, 1], or a mask, (1, H, W), 1 where it is white; what it
    was read from; and the SHA-256 of its size and pixels.
    """

    pixels: Tensor = attrs.field(eq=False, repr=False)
    source: str = attrs.field(eq=False)
    sha256: str = attrs.field(init=False)

    @sha256.default
    def _sha256(self) -> str:
        return digest([*self.pixels.shape, self.pixels.numpy().tobytes().hex()])


def read_picture(given: Any, what: Literal["init image", "mask"] = "init image") -> Picture | None:
    """A picture by path, as a PIL image, or an array: (H, W, 3) of bytes, or (3, H, W) in [-1, 1].
    A mask, whose arrays are (H, W), is 1 where it is more than half white; half of an array's white
    is half its largest number. UsageError for anything else, and for transparent pictures;
    AssetError if a file cannot be read.
    """
    if given is None or isinstance(given, Picture):
        return given
    try:
        decoded = decode_target(Path(given) if isinstance(given, str) and given.strip() else given)
    except PpapError as error:
        hint = _KINDS if isinstance(error, UsageError) else error.hint
        raise type(error)(error.message.replace("target", what, 1), hint=hint) from error
    if decoded.transparent:
        hint = "save it without alpha; --mask says what is drawn anew"
        raise UsageError(f"{what} {decoded.source!r} is transparent in places", hint=hint)
    unfit = UsageError(f"{what} {decoded.source!r} is no picture", hint=_KINDS)
    if decoded.text is not None:
        raise unfit
    pixels, channels = decoded.pixels() if decoded.array is None else decoded.array.float(), 3
    if what == "mask":
        grey, half = (pixels.mean(0), 0.0) if decoded.image else (pixels, 0.5 * pixels.max())
        pixels, channels = (grey > half).float().reshape(-1, *grey.shape[-2:]), 1
    if pixels.ndim != 3 or len(pixels) != channels or not pixels.abs().max() <= 1.0:
        raise unfit
    return Picture(pixels.contiguous(), decoded.source)


def read_mask(given: Any) -> Picture | None:
    """A mask, as `read_picture` reads it."""
    return read_picture(given, "mask")


@torch.no_grad()
def begun(image: Picture, mask: Picture | None, backend: DiffusionBackend) -> tuple[Known, Known]:
    """Both for images of the last stage, and for x_t of the first; all is unknown without a mask.

    UsageError if the mask then is the same everywhere, or pictures cannot be made latents.
    """
    (_, *size), first = backend.stages[-1].image_shape, backend.stages[0]
    unknown = torch.ones_like(image.pixels[:1]) if mask is None else mask.pixels
    picture = Known(image.pixels[None], unknown[None]).sized(*size)
    if mask is not None and picture.unknown.min() == picture.unknown.max():
        reason = f"mask {mask.source!r} is all {'white' if picture.unknown.any() else 'black'}"
        raise UsageError(reason, hint="white pixels are drawn anew, black ones are kept")
    small = picture.sized(*first.image_shape[1:])
    x0 = first.encode(small.x0)
    return picture, Known(x0, F.adaptive_max_pool2d(small.unknown, x0.shape[-2:]).to(x0))
