"""What a user gives as target, decoded safely into a `TargetInput`.

Words stay words. Pictures, from files or from memory, become upright images in one of three forms:
RGB with 8 bits, single-channel with 16 (mode "I;16"), or indexed (mode "P"), whose indices may be
the labels of a mask. Grey ones of fewer than 8 bits are indexed, too: their numbers are 0 to 1, 3
or 15, which a grey palette shows as they look. Anything else that is numeric becomes a tensor; maps
may hold gaps. Files are taken for hostile: few formats, a size that is bounded before anything is
unpacked, and nothing in them is run.
"""

from __future__ import annotations

import contextlib
import os
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

__all__ = ["MAX_ELEMENTS", "MAX_PIXELS", "decode_target"]

MAX_PIXELS = 50_000_000
"""Of a picture."""

MAX_ELEMENTS = 50_000_000
"""Of an array."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none calls another program
_PICTURES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".pbm",
    ".pgm",
    ".ppm",
}
_ARRAY = ".npy"
_LARGEST_16_BIT = 65_535
_FEW_LEVELS = {"L;2": 4, "L;4": 16}  # what Pillow calls them before it spreads them over 8 bits
_KINDS = "give words, an index, a picture or an array"


def decode_target(given: object) -> TargetInput:
    """Decode a target.

    Args:
        given: Words or a number; a path, where a string is one if it ends like a picture or array
            file (`.npy`) or names a file inside a folder; a PIL image; or an array or tensor, of
            which (H, W, 3) and (H, W, 4) of uint8 are pictures.

    Raises:
        UsageError: Where it is nothing of the kind, or not finite.
        AssetError: Where it names a file that is missing, damaged, too large or of another kind.
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
    if path.suffix.lower() in {*_PICTURES, _ARRAY} or (_names_folder(text) and path.is_file()):
        return _from_file(path)
    return TargetInput(text=text, source=text)


def _names_folder(text: str) -> bool:
    return "/" in text or os.sep in text


def _from_file(path: Path) -> TargetInput:
    source = str(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "is not there"
        raise AssetError(f"target {source!r} {fault}", hint="give the path of a picture or array")
    with _decoding(source):
        if path.suffix.lower() == _ARRAY:
            # Mapping holds the header against the size of the file before it asks for memory.
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                if "Python objects" not in str(error):
                    raise
                raise AssetError(
                    f"target {source!r} is an array of objects, which are not read",
                    hint="save numbers, as in np.save(path, array.astype(np.float32))",
                ) from error
            return _from_array(array, source)
        with Image.open(path, formats=_FORMATS) as image:
            return _from_image(image, source)


@contextlib.contextmanager
def _decoding(source: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `AssetError`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that are refused here, and of metadata that nobody reads.
            warnings.simplefilter("ignore")
            yield
    except PpapError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(source) from error
    except UnidentifiedImageError as error:
        known = ", ".join(_FORMATS)
        raise AssetError(
            f"target {source!r} is no picture of a known format", hint=f"known are {known}, and npy"
        ) from error
    except Exception as error:  # damaged files make decoders fail in a dozen ways
        reason = str(error) or type(error).__name__
        raise AssetError(
            f"target {source!r} cannot be read: {reason}", hint="the file is damaged or incomplete"
        ) from error


def _too_large(source: str) -> AssetError:
    return AssetError(
        f"target {source!r} has more than {MAX_PIXELS} pixels", hint="make it smaller first"
    )


def _from_image(image: Image.Image, source: str) -> TargetInput:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(source)
    image.seek(0)
    levels = _few_levels(image)
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        return _from_array(np.asarray(upright), source)
    return TargetInput(image=_canonical(upright, levels, source), source=source)


def _few_levels(image: Image.Image) -> int | None:
    """How many shades a grey image of fewer than 8 bits can have; None for all others.

    Of 2 and 4 bits a file says so only until it is decoded.
    """
    if image.mode == "1":
        return 2
    if image.mode == "L" and isinstance(image, ImageFile.ImageFile) and image.tile:
        stored = image.tile[0][3]
        return _FEW_LEVELS.get(stored[0] if isinstance(stored, tuple) else str(stored))
    return None


def _indexed(image: Image.Image, levels: int) -> Image.Image:
    """A grey image as numbers from 0 to levels - 1, in a palette of the same greys."""
    step = 255 // (levels - 1)
    numbers = Image.fromarray(np.asarray(image.convert("L")) // step)
    numbers.putpalette([shade for k in range(levels) for shade in (k * step,) * 3])
    return numbers


def _canonical(image: Image.Image, levels: int | None, source: str) -> Image.Image:
    """RGB, "I;16" or "P"; what is transparent shows white behind it.

    Args:
        image: Upright.
        levels: As `_few_levels`.
        source: For messages.
    """
    if image.mode == "P":
        return image
    if levels is not None and not image.has_transparency_data:
        return _indexed(image, levels)
    if image.mode.startswith("I"):
        numbers = np.asarray(image).astype(np.int64)
        if numbers.min() < 0 or numbers.max() > _LARGEST_16_BIT:
            raise UsageError(
                f"target {source!r} holds numbers beyond 16 bits", hint="save them as .npy"
            )
        return Image.fromarray(numbers.astype(np.uint16))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
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
