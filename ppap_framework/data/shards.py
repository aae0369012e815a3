"""Shards: reproducible tar files in webdataset's format, and the images that each holds.

Image 7 of a backend with one stage is `00000007.png`, with two `00000007.base.png` and
`00000007.upsampler.png`; `00000007.json` holds its index, seed and prompt.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.errors import AssetError, UsageError


@attrs.frozen
class Layout:
    """`num` images in batches, and batches in shards (files) of `shard` images; the last of each
    may be shorter. UsageError if `shard` is no multiple of `batch`, which changes low-order bits.
    """

    num: int
    batch: int
    shard: int

    def __attrs_post_init__(self) -> None:
        if self.shard % self.batch:
            fault = f"a shard of {self.shard} images is not made of whole batches of {self.batch}"
            nearest = max(1, round(self.shard / self.batch)) * self.batch
            raise UsageError(fault, hint=f"use shards of {nearest}, say")

    @property
    def batches(self) -> range:
        return range(-(-self.num // self.batch))

    @property
    def shards(self) -> range:
        return range(-(-self.num // self.shard))

    def batch_images(self, batch: int) -> range:
        return range(self.num)[batch * self.batch : (batch + 1) * self.batch]

    def shard_images(self, shard: int) -> range:
        return range(self.num)[shard * self.shard : (shard + 1) * self.shard]

    def shard_batches(self, shard: int) -> range:
        each = self.shard // self.batch
        return self.batches[shard * each : (shard + 1) * each]


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.tar"


def member_names(image: int, stages: Sequence[str]) -> list[str]:
    """File names of an image: a picture for each stage, and its description."""
    endings = ["png"] if len(stages) == 1 else [f"{stage}.png" for stage in stages]
    return [f"{image:08d}.{ending}" for ending in (*endings, "json")]


def members(
    image: int, pictures: Mapping[str, NDArray[np.uint8]], seed: int, prompt: str | None = None
) -> bytes:
    """An image as consecutive members of a tar file; pictures, (H, W, 3), are by stage."""
    contents: list[bytes] = []
    for pixels in pictures.values():
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        contents.append(png.getvalue())
    told = {"index": image, "seed": seed} | ({} if prompt is None else {"prompt": prompt})
    contents.append(json.dumps(told).encode())
    made = b""
    for name, content in zip(member_names(image, list(pictures)), contents, strict=True):
        info = tarfile.TarInfo(name)  # mode 0644, owner and time 0
        info.size = len(content)
        made += info.tobuf(tarfile.USTAR_FORMAT) + content
        made += bytes(-len(content) % tarfile.BLOCKSIZE)
    return made


def end(size: int) -> bytes:
    """The end of a tar file with members of this size: two empty blocks, padded to a record."""
    return bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)


def read_index(path: Path) -> dict[str, tuple[int, int]]:
    """Start and length of each member's content, in order; AssetError if it is no tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {info.name: (info.offset_data, info.size) for info in tar}
    except (OSError, tarfile.TarError) as error:
        fault = f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}"
        raise AssetError(fault, hint="`ppap data verify` looks into it") from error


def read_member(file: BinaryIO, place: tuple[int, int]) -> bytes:
    """A member's content, given its start and length."""
    file.seek(place[0])
    return file.read(place[1])


def decode(content: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels, (H, W, 3), of an RGB PNG file; ValueError if it is not of shape (3, H, W)."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            found = f"{picture.width}x{picture.height} {picture.mode}"
            if found != (wanted := f"{shape[2]}x{shape[1]} RGB"):
                raise ValueError(f"is {found}, not {wanted}")
            return np.array(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"is no readable PNG: {error}") from error


def check_description(content: bytes, image: int) -> None:
    """ValueError if the description is not that of an image."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        if json.loads(content)["index"] == image:
            return
    raise ValueError(f"is not about image {image}")
