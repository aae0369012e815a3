"""Shards: tar files as webdataset reads them, the same bytes for the same images.

Image 7 of a backend with one stage is `00000007.png`, with two `00000007.base.png` and
`00000007.upsampler.png`; `00000007.json` says which image it is. All headers say the same mode,
owner and time, so members of a tar file can be made one by one and joined.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.errors import AssetError

__all__ = ["decode", "end", "member_names", "members", "read_index", "shard_name"]

_ZEROS = b"\0"


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"shard-{shard:05d}.tar"


def member_names(image: int, stages: Sequence[str]) -> list[str]:
    """The files of an image: a picture for each stage, and what is said of it."""
    endings = ["png"] if len(stages) == 1 else [f"{stage}.png" for stage in stages]
    return [f"{image:08d}.{ending}" for ending in (*endings, "json")]


def members(
    image: int, pictures: Mapping[str, NDArray[np.uint8]], seed: int, prompt: str | None = None
) -> bytes:
    """An image as consecutive members of a tar file.

    Args:
        image: Its number.
        pictures: (H, W, 3) of each stage, in the order of the stages.
        seed: With the number, where it was drawn from.
        prompt: What the backend was told, if anything.
    """
    told = {} if prompt is None else {"prompt": prompt}
    said = json.dumps({"index": image, "seed": seed, **told}).encode()
    contents = [*map(_png, pictures.values()), said]
    names = member_names(image, list(pictures))
    return b"".join(map(_member, names, contents))


def end(size: int) -> bytes:
    """What ends a tar file whose members have this size: two empty blocks, and a whole record."""
    least = size + 2 * tarfile.BLOCKSIZE
    return _ZEROS * (-(-least // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - size)


def read_index(path: Path) -> dict[str, tuple[int, int]]:
    """Where each member's content begins and how long it is, in their order.

    Raises:
        AssetError: Where the file is missing, or is no tar file.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return {info.name: (info.offset_data, info.size) for info in tar}
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AssetError(
            f"cannot read {str(path)!r}: {reason}", hint="`ppap data verify` looks into it"
        ) from error


def decode(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels of a picture, (H, W, 3).

    Args:
        content: Of a PNG file.
        shape: (3, H, W), that it must have.

    Raises:
        ValueError: Where it is anything else.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if (picture.mode, *picture.size) != ("RGB", shape[2], shape[1]):
                raise ValueError(
                    f"is {picture.width}x{picture.height} {picture.mode}, "
                    f"not {shape[2]}x{shape[1]} RGB"
                )
            return np.asarray(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"is no readable PNG: {error}") from error


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # mode 0644, owner and time 0
    info.size = len(content)
    padding = _ZEROS * (-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + padding
