"""Safe decoding of what a user gives as target into a `TargetInput`.

Words stay words. Pictures, from files or memory, become upright images in one of three forms: RGB
with 8 bits, single-channel with 16 bits (mode "I;16"), or indexed (mode "P"), whose indices may be
the labels of a mask. Gray ones of fewer than 8 bits are indexed as well: by their numbers, 0 to 1,
3 or 15, with a palette of the same grays. Other numbers become tensors; maps may have gaps.

Files are untrusted: few formats are read, sizes are limited before unpacking, nothing is run.
"""

from __future__ import annotations

import contextlib
import math
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
from ppap_framework.files import expanded

MAX_PIXELS = MAX_ELEMENTS = 50_000_000
"""Limits for a picture and for an array."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none calls another program
_SUFFIX = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|p[bgp]m|npy|json)", re.IGNORECASE)
_PART = re.compile(r"(?s)\s*(.*?)\s*(?::\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*)?$")
_SHADES = {"L;2": 4, "L;4": 16}  # Pillow's names, until it spreads them over 8 bits
_KINDS = "give words, an index, a picture or an array"


def decode_target(given: object) -> TargetInput:
    """Decode words or a number; a path, which a string is if it ends like a picture, `.npy` or
    `.json`, or names a file and has an ending or a folder; a PIL image; or an array or tensor,
    which is a picture if it is (H, W, 3) or (H, W, 4) of uint8. A JSON file is words. UsageError if
    it is none of these or not finite; AssetError if a file is missing, damaged or too large.
    """
    match given:
        case TargetInput():
            return given
        case bool():
            raise UsageError(f"a target cannot be {given}", hint=_KINDS)
        case int() | np.integer():
            return TargetInput(text=str(int(given)), source=str(int(given)), is_index=True)
        case str():
            text = given.strip()
            if not text:
                raise UsageError("the target is empty", hint=_KINDS)
            path = expanded(text)
            is_file = (bool(path.suffix) or "/" in text or os.sep in text) and os.path.isfile(path)  # noqa: PTH113
            if is_file or (_SUFFIX.fullmatch(path.suffix) and "|" not in text):
                return _from_file(path)
            return TargetInput(text=text, source=text)
        case os.PathLike():
            return _from_file(expanded(given))
        case Image.Image():
            with _decoding("picture"):
                return _from_image(given, "picture")
        case Tensor():
            return _from_array(given.detach().cpu().clone(), "tensor")
        case np.ndarray() | list() | tuple():
            with _decoding("array"):
                return _from_array(given, "array")
        case _:
            raise UsageError(f"a target cannot be of type {type(given).__name__}", hint=_KINDS)


def weighted_parts(given: TargetInput) -> list[tuple[TargetInput, float]]:
    """Decode the parts of a text such as "a cube | sky.png:0.5", whose weights are 1 by default."""
    if given.text is None:
        return [(given, 1.0)]
    parts = [_PART.findall(part)[0] for part in given.text.split("|")]
    return [(decode_target(text), float(weight or 1.0)) for text, weight in parts]


def _from_file(path: Path) -> TargetInput:
    source = str(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "is not there"
        raise AssetError(f"target {source!r} {fault}", hint="give the path of a picture or array")
    with _decoding(source):
        if path.suffix.lower() == ".json" and path.stat().st_size <= MAX_ELEMENTS:
            return TargetInput(text=path.read_text(encoding="utf-8"), source=source)
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
    except Exception as error:  # damaged files make decoders fail in many ways
        fault = f"cannot be read: {str(error) or type(error).__name__}"
        hint = "the file is damaged or incomplete"
        if isinstance(error, Image.DecompressionBombError):
            fault, hint = f"has more than {MAX_PIXELS} pixels", "make it smaller first"
        elif isinstance(error, UnidentifiedImageError):
            fault = "is no picture of a known format"
            hint = f"known are {', '.join(_FORMATS)}, npy and json"
        elif "Python objects" in str(error):  # as numpy says it
            fault = "is an array of objects, which are not read"
            hint = "save numbers, as in np.save(path, array.astype(np.float32))"
        raise AssetError(f"target {source!r} {fault}", hint=hint) from error


def _from_image(image: Image.Image, source: str) -> TargetInput:
    """An upright picture as RGB on white, "I;16" or "P", or the numbers of a floating one."""
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.seek(0)
    shades = _shades(image)  # decoding loses them
    image = ImageOps.exif_transpose(image)
    clear = image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
    if image.mode == "F":
        return _from_array(np.asarray(image), source)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            fault = f"target {source!r} holds numbers beyond 16 bits"
            raise UsageError(fault, hint="save them as .npy")
        image = Image.fromarray(values.astype(np.uint16))
    elif shades and not image.has_transparency_data:
        step = 255 // (shades - 1)
        image = Image.fromarray(np.asarray(image.convert("L")) // step)
        image.putpalette([shade for k in range(shades) for shade in (k * step,) * 3])
    elif image.mode != "P":
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        image = image.convert("RGB")
    return TargetInput(image=image, source=source, transparent=bool(clear))


def _shades(image: Image.Image) -> int:
    """The number of shades of a gray image of fewer than 8 bits, else 0."""
    if image.mode == "L" and isinstance(image, ImageFile.ImageFile) and image.tile:
        stored = image.tile[0][3]
        return _SHADES.get(stored[0] if isinstance(stored, tuple) else str(stored), 0)
    return 2 if image.mode == "1" else 0


def _from_array(given: Any, source: str) -> TargetInput:
    """From a tensor or anything that numpy reads."""
    if not isinstance(given, Tensor):
        try:
            given = np.asarray(given)
        except ValueError as error:  # rows of different lengths
            raise UsageError(f"target {source!r} is no array: {error}", hint=_KINDS) from error
        if given.dtype.kind not in "buif":
            raise UsageError(f"target {source!r} holds {given.dtype}, not numbers", hint=_KINDS)
        if given.dtype == np.uint8 and given.ndim == 3 and given.shape[2] in (3, 4) and given.size:
            return _from_image(Image.fromarray(np.ascontiguousarray(given)), source)
    if not 1 <= (size := math.prod(given.shape)) <= MAX_ELEMENTS:
        raise UsageError(f"target {source!r} holds {size} numbers", hint=f"1 to {MAX_ELEMENTS} fit")
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given.astype("f4" if given.dtype.kind == "f" else "i8"))
    if given.is_complex():
        raise UsageError(f"target {source!r} holds complex numbers", hint="give real ones")
    real = given.float() if given.is_floating_point() else given.long()
    if broken := int((~real.isfinite()).sum()):
        if real.ndim < 2 or broken == real.numel():
            fault = f"target {source!r} holds {broken} numbers that are not finite"
            raise UsageError(fault, hint="only a map may have gaps, and not be one")
        real = real.nan_to_num(torch.nan, torch.nan, torch.nan)
    return TargetInput(array=real, source=source)
