"""Safe decoding of what a user gives as target into a `TargetInput`.

Words stay words. Pictures, from files or memory, become upright images in one of three forms: RGB
with 8 bits, single-channel with 16 bits (mode "I;16"), or indexed (mode "P"), whose indices may be
the labels of a mask. Gray ones of fewer than 8 bits are indexed as well: by their numbers, 0 to 1,
3 or 15, with a palette of the same grays. Other numbers become tensors; maps may have gaps.

Files are untrusted: few formats are read, the size is limited before anything is unpacked, and
nothing in them is run.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ppap_framework.components import TargetInput
from ppap_framework.errors import AssetError, PpapError, UsageError

MAX_PIXELS = 50_000_000
"""Limit for a picture."""

MAX_ELEMENTS = 50_000_000
"""Limit for an array."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none calls another program
_SUFFIX = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|p[bgp]m|npy)", re.IGNORECASE)
_FEW_LEVELS = {"L;2": 4, "L;4": 16}  # Pillow's names, until it spreads them over 8 bits
_KINDS = "give words, an index, a picture or an array"


def decode_target(given: object) -> TargetInput:
    """Decode a target.

    Args:
        given: Words or a number; a path, which a string is if it ends like a picture or array file
            (`.npy`) or names a file inside a folder; a PIL image; or an array or tensor, which is a
            picture if it is (H, W, 3) or (H, W, 4) of uint8.

    Raises:
        UsageError: If it is none of these, or not finite.
        AssetError: If it names a file that is missing, damaged, too large or of another kind.
    """
    match given:
        case TargetInput():
            return given
        case bool():
            raise UsageError(f"a target cannot be {given}", hint=_KINDS)
        case int() | np.integer():
            return TargetInput(text=str(int(given)), source=str(int(given)))
        case str():
            return _from_text(given.strip())
        case os.PathLike():
            return _from_file(Path(given).expanduser())
        case Image.Image():
            with _decoding("picture"):
                return _from_image(given, "picture")
        case Tensor():
            return _from_tensor(given.detach().cpu().clone(), "tensor")
        case np.ndarray() | list() | tuple():
            return _from_array(given, "array")
        case _:
            raise UsageError(f"a target cannot be of type {type(given).__name__}", hint=_KINDS)


def _from_text(text: str) -> TargetInput:
    if not text:
        raise UsageError("the target is empty", hint=_KINDS)
    path = Path(text).expanduser()
    in_folder = "/" in text or os.sep in text
    if _SUFFIX.fullmatch(path.suffix) or (in_folder and path.is_file()):
        return _from_file(path)
    return TargetInput(text=text, source=text)


def _from_file(path: Path) -> TargetInput:
    source = str(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "is not there"
        raise AssetError(f"target {source!r} {fault}", hint="give the path of a picture or array")
    with _decoding(source):
        if path.suffix.lower() == ".npy":
            # A mapped file is compared with its header before memory is allocated.
            return _from_array(np.load(path, mmap_mode="r", allow_pickle=False), source)
        with Image.open(path, formats=_FORMATS) as image:
            return _from_image(image, source)


@contextlib.contextmanager
def _decoding(source: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused here, and of metadata that is not read.
            warnings.simplefilter("ignore")
            yield
    except PpapError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(source) from error
    except UnidentifiedImageError as error:
        raise AssetError(
            f"target {source!r} is no picture of a known format",
            hint=f"known are {', '.join(_FORMATS)}, and npy",
        ) from error
    except Exception as error:  # damaged files make decoders fail in many ways
        if "Python objects" in str(error):  # as numpy says it
            raise AssetError(
                f"target {source!r} is an array of objects, which are not read",
                hint="save numbers, as in np.save(path, array.astype(np.float32))",
            ) from error
        raise AssetError(
            f"target {source!r} cannot be read: {str(error) or type(error).__name__}",
            hint="the file is damaged or incomplete",
        ) from error


def _too_large(source: str) -> AssetError:
    return AssetError(
        f"target {source!r} has more than {MAX_PIXELS} pixels", hint="make it smaller first"
    )


def _from_image(image: Image.Image, source: str) -> TargetInput:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(source)
    image.seek(0)
    levels = _few_levels(image)  # decoding loses it
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        return _from_array(np.asarray(upright), source)
    return TargetInput(image=_canonical(upright, levels, source), source=source)


def _few_levels(image: Image.Image) -> int | None:
    """The number of shades of a gray image of fewer than 8 bits, else None."""
    if image.mode == "1":
        return 2
    if image.mode == "L" and isinstance(image, ImageFile.ImageFile) and image.tile:
        stored = image.tile[0][3]
        return _FEW_LEVELS.get(stored[0] if isinstance(stored, tuple) else str(stored))
    return None


def _canonical(image: Image.Image, levels: int | None, source: str) -> Image.Image:
    """An upright image as RGB on white, "I;16" or "P"."""
    if image.mode == "P":
        return image
    if levels is not None and not image.has_transparency_data:
        step = 255 // (levels - 1)
        numbers = Image.fromarray(np.asarray(image.convert("L")) // step)
        numbers.putpalette([shade for k in range(levels) for shade in (k * step,) * 3])
        return numbers
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise UsageError(
                f"target {source!r} holds numbers beyond 16 bits", hint="save them as .npy"
            )
        return Image.fromarray(values.astype(np.uint16))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _from_array(given: Any, source: str) -> TargetInput:
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise UsageError(f"target {source!r} is no array: {error}", hint=_KINDS) from error
    if array.dtype.kind not in "buif":
        raise UsageError(f"target {source!r} holds {array.dtype}, not numbers", hint=_KINDS)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4) and array.size:
        return _from_image(Image.fromarray(np.ascontiguousarray(array)), source)
    _check_size(array.size, source)
    wide = np.float32 if array.dtype.kind == "f" else np.int64
    return _from_tensor(torch.from_numpy(array.astype(wide)), source)


def _from_tensor(tensor: Tensor, source: str) -> TargetInput:
    _check_size(tensor.numel(), source)
    if tensor.is_complex():
        raise UsageError(f"target {source!r} holds complex numbers", hint="give real ones")
    real = tensor.float() if tensor.is_floating_point() else tensor.long()
    known = real.isfinite()
    if broken := int((~known).sum()):
        if real.ndim < 2 or broken == real.numel():
            raise UsageError(
                f"target {source!r} holds {broken} numbers that are not finite",
                hint="a map may have gaps, but not be one; other targets have none",
            )
        real = torch.where(known, real, torch.nan)
    return TargetInput(array=real, source=source)


def _check_size(elements: int, source: str) -> None:
    if not 1 <= elements <= MAX_ELEMENTS:
        raise UsageError(
            f"target {source!r} holds {elements} numbers", hint=f"give from 1 to {MAX_ELEMENTS}"
        )
