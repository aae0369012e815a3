"""The pictures that images begin with: an init image, and a mask of what is drawn anew.

Sampling begins with the init image, noised to a share of the trajectory (SDEdit, Meng et al. 2021,
arXiv 2108.01073). If there is a mask, its black pixels are kept: see `diffusion.walk`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.components import DiffusionBackend, Known
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.files import digest
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


def read_init_image(given: Any) -> Picture | None:
    """A picture by path, as a PIL image, or an array: (H, W, 3) of bytes, or (3, H, W) in [-1, 1].

    UsageError if it is anything else or transparent, AssetError if its file cannot be read.
    """
    if given is None or isinstance(given, Picture):
        return given
    pixels, source, _ = _read(given, "init image")
    if pixels.ndim != 3 or len(pixels) != 3 or not pixels.abs().max() <= 1.0:
        hint = f"{_KINDS} (3, H, W) in [-1, 1]"
        raise UsageError(f"init image {source!r} is no picture", hint=hint)
    return Picture(pixels.contiguous(), source)


def read_mask(given: Any) -> Picture | None:
    """A mask by path, as a PIL image, or an array, (H, W): 1 where it is more than half white, that
    is more than half of an array's largest number. Errors as of `read_init_image`.
    """
    if given is None or isinstance(given, Picture):
        return given
    pixels, source, is_image = _read(given, "mask")
    if is_image:
        return Picture((pixels.mean(0, keepdim=True) > 0.0).float(), source)
    if pixels.ndim - (len(pixels) == 1) != 2:
        raise UsageError(f"mask {source!r} is no array (H, W)", hint=_KINDS)
    return Picture((pixels > 0.5 * pixels.max()).float().reshape(1, *pixels.shape[-2:]), source)


def _read(given: Any, what: str) -> tuple[Tensor, str, bool]:
    """A picture's pixels in [-1, 1], or an array's numbers; its source; whether it is a picture."""
    try:
        decoded = decode_target(Path(given) if isinstance(given, str) and given.strip() else given)
    except PpapError as error:
        hint = _KINDS if isinstance(error, UsageError) else error.hint
        raise type(error)(error.message.replace("target", what, 1), hint=hint) from error
    if decoded.transparent:
        hint = "save it without alpha; --mask says what is drawn anew"
        raise UsageError(f"{what} {decoded.source!r} is transparent in places", hint=hint)
    if decoded.array is not None:
        return decoded.array.float(), decoded.source, False
    if decoded.image is None:
        raise UsageError(f"{what} {decoded.text!r} is no picture", hint=_KINDS)
    return decoded.pixels(), decoded.source, True


@torch.no_grad()
def begun(image: Picture, mask: Picture | None, backend: DiffusionBackend) -> tuple[Known, Known]:
    """Both for images of the last stage, and for x_t of the first; all is unknown without a mask.

    UsageError if the mask then is the same everywhere, or pictures cannot be made latents.
    """
    (_, *size), first = backend.stages[-1].image_shape, backend.stages[0]
    unknown = torch.ones_like(image.pixels[:1]) if mask is None else mask.pixels
    picture = Known(x0=image.pixels[None], unknown=unknown[None]).sized(*size)
    if mask is not None and len(picture.unknown.unique()) == 1:
        reason = f"mask {mask.source!r} is all {'white' if picture.unknown.any() else 'black'}"
        raise UsageError(reason, hint="white pixels are drawn anew, black ones are kept")
    small = picture.sized(*first.image_shape[1:])
    x0 = first.encode(small.x0)
    return picture, Known(x0=x0, unknown=F.adaptive_max_pool2d(small.unknown, x0.shape[-2:]).to(x0))
