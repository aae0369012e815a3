"""Synthetic images, read from the folder that `synthesize` wrote."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.data.files import file_sha256, read_json
from ppap_framework.data.folder import PARTIAL, RUN, SETTINGS, read_manifest
from ppap_framework.data.layout import Layout
from ppap_framework.data.shards import (
    decode,
    member_names,
    read_index,
    shard_name,
)
from ppap_framework.errors import AssetError

__all__ = ["Fault", "SyntheticData"]

_ANEW = "`ppap synthesize` with the same settings draws it again"


@attrs.frozen
class Fault:
    """What is wrong with a file of a set.

    Attributes:
        file: Its name.
        reason: What is wrong.
    """

    file: str
    reason: str


@final
class SyntheticData:
    """A finished set. A shard is read, and its hash checked, when the first of its images is.

    Args:
        path: Of the folder.

    Attributes:
        path: Of the folder.
        manifest: Settings, and the shards with their hashes.

    Raises:
        AssetError: Where the folder holds no finished set, or its manifest is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.manifest = _finished_manifest(self.path)
        settings = self.manifest["settings"]
        self._layout = Layout(settings["num"], settings["block"], settings["shard"])
        self._stages = [stage["name"] for stage in settings["stages"]]
        self._members: dict[int, dict[str, tuple[int, int]]] = {}

    @property
    def manifest_hash(self) -> str:
        """The SHA-256 of the manifest's canonical content, and so of every image."""
        return str(self.manifest["sha256"])

    @property
    def seconds(self) -> float | None:
        """How long drawing took, over all calls; None where `run.json` does not say."""
        try:
            return float(read_json(self.path / RUN)["seconds"])
        except (AssetError, KeyError, TypeError, ValueError):
            return None

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the backend's stages, of each of which every image has a picture."""
        return tuple(self._stages)

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        """(3, H, W) of a stage's pictures."""
        channels, height, width = self.manifest["settings"]["stages"][stage]["image_shape"]
        return channels, height, width

    def __len__(self) -> int:
        return self._layout.num

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """Pictures by their numbers.

        Args:
            indices: B of them, in any order, from 0 to `len` - 1.
            stage: The last by default, which teachers look at; 0 is the one that guides steer.

        Returns:
            (B, 3, H, W), uint8.

        Raises:
            IndexError: For a number that there is not.
            AssetError: Where a shard is missing or damaged.
        """
        numbers = [operator.index(index) for index in indices]
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"there is no image {number} among {len(self)}")
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        pictures = torch.empty(len(numbers), *self.image_shape(stage), dtype=torch.uint8)
        read = self._read((numbers[row] for row in order), stage)
        for row, pixels in zip(order, read, strict=True):
            pictures[row] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return pictures

    def load(self, stage: int = -1) -> Tensor:
        """Every picture of a stage, (N, 3, H, W), uint8."""
        return self.images(range(len(self)), stage)

    def faults(self) -> list[Fault]:
        """All that is wrong with the files: hashes, counts, and pictures that cannot be read."""
        entries = self.manifest["shards"]
        known = {entry["file"] for entry in entries}
        others = [path.name for path in sorted(self.path.glob("shard-*.tar"))]
        return [
            *chain.from_iterable(self._shard_faults(shard) for shard in self._layout.shards),
            *(Fault(name, "is not in the manifest") for name in others if name not in known),
        ]

    def moments(self, stage: int = -1) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of each channel over all pixels, in [-1, 1].

        Returns:
            Twice (3,), float64.
        """
        total, squares = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        for shard in self._layout.shards:
            levels = self.images(self._layout.shard_images(shard), stage).to(torch.int64)
            total += levels.sum((0, 2, 3))
            squares += levels.square().sum((0, 2, 3))
        _, height, width = self.image_shape(stage)
        pixels = len(self) * height * width
        mean = total.double() / pixels
        # n sum(x^2) - sum(x)^2 in whole numbers of any size: nothing cancels.
        spread = torch.tensor(
            [
                (pixels * square - level * level) ** 0.5 / pixels
                for square, level in zip(squares.tolist(), total.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        return mean / 127.5 - 1.0, spread / 127.5

    def _read(self, numbers: Iterable[int], stage: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures, whose numbers rise."""
        shape = self.image_shape(stage)
        open_shard, file = -1, None
        try:
            for number in numbers:
                shard = number // self._layout.shard
                path = self.path / shard_name(shard)
                members = self._checked(shard)
                if shard != open_shard or file is None:
                    if file is not None:
                        file.close()
                    open_shard, file = shard, path.open("rb")
                name = member_names(number, self._stages)[:-1][stage]
                try:
                    start, size = members[name]
                    file.seek(start)
                    yield decode(file.read(size), shape)
                except (KeyError, ValueError) as error:
                    raise AssetError(
                        f"{name!r} in {str(path)!r} cannot be read: {error}", hint=_ANEW
                    ) from error
        finally:
            if file is not None:
                file.close()

    def _checked(self, shard: int) -> dict[str, tuple[int, int]]:
        """A shard's members; its hash is checked the first time."""
        if shard not in self._members:
            path = self.path / shard_name(shard)
            if reason := self._damage(shard):
                raise AssetError(f"{str(path)!r} {reason}", hint=_ANEW)
            self._members[shard] = read_index(path)
        return self._members[shard]

    def _damage(self, shard: int) -> str:
        """What is wrong with a shard as a file; nothing where it has the hash that it should."""
        entry, path = self.manifest["shards"][shard], self.path / shard_name(shard)
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"has {size} bytes, not {entry['bytes']}"
            if file_sha256(path) != entry["sha256"]:
                return "is damaged: its SHA-256 is not that of the manifest"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return ""

    def _shard_faults(self, shard: int) -> Iterator[Fault]:
        name = shard_name(shard)
        if reason := self._damage(shard):
            yield Fault(name, reason)
            return
        try:
            members = read_index(self.path / name)
        except AssetError as error:
            yield Fault(name, error.message)
            return
        numbers = self._layout.shard_images(shard)
        expected = [file for n in numbers for file in member_names(n, self._stages)]
        if list(members) != expected:
            yield Fault(name, f"has {len(members)} members that are not the {len(expected)} due")
            return
        for number in numbers:
            yield from self._image_faults(name, number, members)

    def _image_faults(
        self, shard: str, number: int, members: Mapping[str, tuple[int, int]]
    ) -> Iterator[Fault]:
        *pictures, said = member_names(number, self._stages)
        with (self.path / shard).open("rb") as file:
            contents = {}
            for name in (*pictures, said):
                start, size = members[name]
                file.seek(start)
                contents[name] = file.read(size)
        for stage, name in enumerate(pictures):
            if reason := _unreadable(contents[name], self.image_shape(stage)):
                yield Fault(shard, f"{name} {reason}")
        if not _is_about(contents[said], number):
            yield Fault(shard, f"{said} is not about image {number}")


def _unreadable(content: bytes, shape: tuple[int, int, int]) -> str:
    try:
        decode(content, shape)
    except ValueError as error:
        return str(error)
    return ""


def _is_about(content: bytes, number: int) -> bool:
    try:
        return bool(json.loads(content)["index"] == number)
    except (ValueError, KeyError, TypeError):
        return False


def _finished_manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest
    if (path / PARTIAL / SETTINGS).exists():
        raise AssetError(
            f"the set in {str(path)!r} is not finished",
            hint="`ppap synthesize` with the same settings goes on",
        )
    raise AssetError(
        f"there is no synthetic set in {str(path)!r}", hint="`ppap synthesize` draws one"
    )
