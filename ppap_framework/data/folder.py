"""The folder of a synthetic set, as it is written and read.

shard-00000.tar ...      the images
shard-00000.tar.damaged  a shard that was found damaged and drawn again
manifest.json            settings and hashes; written last, so it marks a complete set
run.json                 a record of every call
.partial/settings.json   the settings of the first call
.partial/DIGEST/00000    a finished batch: tar members of a future shard
.partial/DIGEST/...      entries of finished shards, workers and their claims
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppap_framework import files
from ppap_framework.data import shards
from ppap_framework.errors import AssetError

FORMATS = (1, 2)
"""Readable formats of the manifest; the last is written. Format 1 called a batch a block."""

MANIFEST, RUN, PARTIAL = "manifest.json", "run.json", ".partial"
DAMAGED = ".damaged"
SETTINGS = f"{PARTIAL}/settings.json"
ANEW = "`ppap synthesize --overwrite` draws the set anew"
_AGAIN = "`ppap synthesize` with the same settings draws it again"


def belongs(name: str) -> bool:
    """Whether a file of this name belongs to a synthetic set."""
    shard = rf"shard-\d{{5,}}\.tar({re.escape(DAMAGED)})?"
    return name in (MANIFEST, RUN) or re.fullmatch(shard, name) is not None


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, if there is one; AssetError if it is damaged or of another format."""
    match files.read_json(path / MANIFEST, hint=ANEW):
        case None:
            return None
        case {"format": found} if found not in FORMATS:
            fault = f"has format {found}; this version reads {FORMATS[-1]}, a newer one may read it"
        case {"format": _, **content} as manifest:
            stated = content.pop("sha256", None)
            with contextlib.suppress(ValueError):  # of a number that is none
                if stated == files.digest({"format": manifest["format"], **content}):
                    return dict(manifest)
            fault = "is damaged: its SHA-256 is not that of its content"
        case _:
            fault = "is no manifest of a synthetic set"
    raise AssetError(f"{str(path / MANIFEST)!r} {fault}", hint=ANEW)


class Fault(NamedTuple):
    """A damaged file of a set, and the reason."""

    file: str
    reason: str


class SyntheticData:
    """A finished set, in a folder or at a URL; AssetError if there is none, or its `manifest`, the
    settings and the shards with their hashes, is damaged. A shard is checked when it is first read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = files.local_folder(path)
        manifest = read_manifest(self.path)
        if manifest is None:
            place, fault, hint = repr(str(self.path)), "there is no synthetic set in", "draws one"
            if (self.path / SETTINGS).exists():
                fault, hint = "there is no finished set in", "with the same settings continues it"
            raise AssetError(f"{fault} {place}", hint=f"`ppap synthesize` {hint}")
        self.manifest, settings = manifest, manifest["settings"]
        batch = settings["block" if self.manifest["format"] == 1 else "batch"]
        self._layout = shards.Layout(settings["num"], batch, settings["shard"])
        self._indices: dict[int, dict[str, tuple[int, int]]] = {}  # by shard

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of the manifest, which covers every image."""
        return str(self.manifest["sha256"])

    @property
    def seconds(self) -> float | None:
        """Duration of all calls in seconds; None if `run.json` is missing or damaged."""
        with contextlib.suppress(AssetError, KeyError, TypeError, ValueError):
            return float(files.read_json(self.path / RUN)["seconds"])
        return None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage["name"] for stage in self.manifest["settings"]["stages"])

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        channels, height, width = self.manifest["settings"]["stages"][stage]["image_shape"]
        return channels, height, width

    def __len__(self) -> int:
        return self._layout.num

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """A stage's pictures for B indices in any order, (B, 3, H, W), uint8. IndexError if an
        index is out of range; AssetError if a shard is missing or damaged.
        """
        numbers = [operator.index(index) for index in indices]
        if outside := [number for number in numbers if not 0 <= number < len(self)]:
            raise IndexError(f"there is no image {outside[0]} among {len(self)}")
        shape = self.image_shape(stage)
        pictures = torch.empty(len(numbers), *shape, dtype=torch.uint8)
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        for shard, rows in groupby(order, lambda row: numbers[row] // self._layout.shard):
            path = self.path / shards.shard_name(shard)
            if shard not in self._indices:
                if reason := self._damage(shard):
                    raise AssetError(f"{str(path)!r} {reason}", hint=_AGAIN)
                self._indices[shard] = shards.read_index(path)
            with path.open("rb") as file:
                for row in rows:
                    name = shards.member_names(numbers[row], self.stages)[:-1][stage]
                    try:
                        content = shards.read_member(file, self._indices[shard][name])
                        pixels = shards.decode(content, shape)
                    except (KeyError, ValueError) as error:
                        fault = f"{name!r} in {str(path)!r} cannot be read: {error}"
                        raise AssetError(fault, hint=_AGAIN) from error
                    pictures[row] = torch.from_numpy(pixels).permute(2, 0, 1)
        return pictures

    def load(self, stage: int = -1) -> Tensor:
        """Every picture of a stage, (N, 3, H, W), uint8."""
        return self.images(range(len(self)), stage)

    def faults(self) -> list[Fault]:
        """All faults of the files: hashes, counts, and unreadable pictures."""
        names = [shards.shard_name(shard) for shard in self._layout.shards]
        found = [Fault(names[n], reason) for n in self._layout.shards for reason in self._faults(n)]
        others = {path.name for path in self.path.glob("shard-*.tar")} - {*names}
        return found + [Fault(name, "is not in the manifest") for name in sorted(others)]

    def moments(self, stage: int = -1) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel in [-1, 1]: (3,) and (3,), float64."""
        counts = torch.zeros(3, 256, dtype=torch.float64)
        for shard in self._layout.shards:
            pictures = self.images(self._layout.shard_images(shard), stage)
            for color, levels in zip(counts, pictures.unbind(1), strict=True):
                color += torch.bincount(levels.flatten(), minlength=256)
        shares, values = counts / counts[0].sum(), torch.linspace(-1, 1, 256, dtype=torch.float64)
        mean = shares @ values
        return mean, (shares * (values - mean[:, None]).square()).sum(1).sqrt()

    def _damage(self, shard: int) -> str:
        """Fault of a shard's size or hash, or ""."""
        entry, path = self.manifest["shards"][shard], self.path / shards.shard_name(shard)
        try:
            if (size := path.stat().st_size) != entry["bytes"]:
                return f"has {size} bytes, not {entry['bytes']}"
            same = files.file_sha256(path) == entry["sha256"]
            return "" if same else "is damaged: its SHA-256 is not that of the manifest"
        except FileNotFoundError:
            return "is missing"
        except (OSError, AssetError):
            return "cannot be read"

    def _faults(self, shard: int) -> Iterator[str]:
        if reason := self._damage(shard):
            yield reason
            return
        path, last = self.path / shards.shard_name(shard), len(self.stages)
        index = shards.read_index(path)
        expected = {
            name: (number, stage)
            for number in self._layout.shard_images(shard)
            for stage, name in enumerate(shards.member_names(number, self.stages))
        }
        if list(index) != list(expected):
            yield f"has {len(index)} members that are not the {len(expected)} expected"
            return
        with path.open("rb") as file:
            for name, (number, stage) in expected.items():
                content = shards.read_member(file, index[name])
                try:
                    if stage == last:
                        shards.check_description(content, number)
                    else:
                        shards.decode(content, self.image_shape(stage))
                except ValueError as error:
                    yield f"{name} {error}"
