"""Images as 8-bit pictures, and files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ppap_framework.errors import PpapError

__all__ = ["to_pictures", "to_uint8", "write_png", "write_text", "writing"]


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """round((x + 1) 127.5), clamped to bytes.

    Args:
        images: (B, 3, H, W), nominally in [-1, 1].

    Returns:
        (B, H, W, 3).
    """
    levels = ((images.detach().float().cpu() + 1.0) * 127.5).round().clamp(0.0, 255.0)
    bytes_: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)
    return bytes_


def to_pictures(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] as B pictures."""
    return [Image.fromarray(pixels) for pixels in to_uint8(images)]


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture, whole or not at all.

    Raises:
        PpapError: Where it cannot be written.
    """
    with writing(path) as temporary:
        picture.save(temporary, "PNG")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, whole or not at all.

    Raises:
        PpapError: Where it cannot be written.
    """
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when all went well, and else goes away.

    Raises:
        PpapError: Where the system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PpapError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
