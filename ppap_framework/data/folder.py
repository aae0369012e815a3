"""The folder of a synthetic set, as it is written and read.

    shard-00000.tar ...      the images
    manifest.json            settings and hashes; written last, so it marks a complete set
    run.json                 a record of every call
    .lock                    lock of the writing process
    .partial/settings.json   the settings of the first call
    .partial/DIGEST/00000    a finished batch: tar members of a future shard

Files are written atomically, so an interruption loses only unfinished batches. DIGEST is that of
the settings: a late write of a dying worker cannot get into another set.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppap_framework import files
from ppap_framework.data import shards
from ppap_framework.data.shards import Layout, member_names, shard_name
from ppap_framework.errors import AssetError, UsageError

_FORMATS = (1, 2)
"""Readable formats of the manifest; the last is written. Format 1 called a batch a block."""

_MANIFEST, RUN, _PARTIAL = "manifest.json", "run.json", ".partial"
_SETTINGS = f"{_PARTIAL}/settings.json"
_ANEW = "`ppap synthesize --overwrite` draws the set anew"
_AGAIN = "`ppap synthesize` with the same settings draws it again"


def belongs(name: str) -> bool:
    """Whether a file of this name belongs to a synthetic set."""
    return name in (_MANIFEST, RUN) or re.fullmatch(r"shard-\d{5,}\.tar", name) is not None


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, if there is one; AssetError if it is damaged or of another format."""
    match files.read_json(path / _MANIFEST, hint=_ANEW):
        case None:
            return None
        case {"format": found} if found not in _FORMATS:
            fault = f"has format {found}, and this version reads {_FORMATS[-1]}"
        case {"format": _, **content} as manifest:
            stated = content.pop("sha256", None)
            if stated == files.digest({"format": manifest["format"], **content}):
                return dict(manifest)
            fault = "is damaged: its SHA-256 is not that of its content"
        case _:
            fault = "is no manifest of a synthetic set"
    raise AssetError(f"{str(path / _MANIFEST)!r} {fault}", hint=_ANEW)


class SynthesisFolder:
    """Joins finished batches into shards; PpapError if a file cannot be written. Create it with
    `opened`. `settings` are everything that determines the images, as JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], layout: Layout) -> None:
        self.path, self.settings, self.layout = path, settings, layout
        self.batches = path / _PARTIAL / files.digest(settings)[:16]
        self._entries: dict[int, dict[str, Any]] = {}  # entries of the manifest by shard

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path, settings: Mapping[str, Any], layout: Layout, *, overwrite: bool = False
    ) -> Iterator[SynthesisFolder]:
        """Lock the folder, created if it is missing; `overwrite` removes an earlier set. UsageError
        if it holds a set with other settings, or another process writes to it.
        """
        with files.opened(path):
            folder = cls(path, settings, layout)
            if overwrite:
                folder._clear()
            manifest = _read_manifest(path)
            begun = path / _SETTINGS
            before = manifest["settings"] if manifest else files.read_json(begun, hint=_ANEW)
            if before is not None:
                files.check_settings(path, before, settings)
            elif strays := [file.name for file in path.glob("shard-*.tar")]:
                fault = f"{str(path)!r} holds {min(strays)!r} without its settings"
                raise UsageError(fault, hint="give another folder, or begin anew with --overwrite")
            files.remove_temporary(path, belongs)
            for shard in layout.shards:
                if (path / shard_name(shard)).exists():
                    entry = folder._entry(shard)
                    if manifest is None or manifest["shards"][shard] == entry:
                        folder._entries[shard] = entry
            yield folder

    @property
    def complete(self) -> bool:
        """Whether the manifest and every shard exist and match."""
        return len(self._entries) == len(self.layout.shards) and (self.path / _MANIFEST).exists()

    def missing(self) -> list[int]:
        """Note the settings; return the batches that are to be drawn."""
        files.write_json(self.path / _SETTINGS, self.settings, hint=files.KEPT)
        for shard in self.layout.shards:
            self._join(shard)
        pending = [shard for shard in self.layout.shards if shard not in self._entries]
        batches = [batch for shard in pending for batch in self.layout.shard_batches(shard)]
        return [batch for batch in batches if not self.batch_path(batch).exists()]

    def batch_path(self, batch: int) -> Path:
        return self.batches / f"{batch:05d}"

    def added(self, batch: int) -> None:
        """Register a written batch; write its shard once complete."""
        self._join(batch * self.layout.batch // self.layout.shard)

    def finish(self) -> None:
        """Write the manifest."""
        entries = [self._entries[shard] for shard in self.layout.shards]
        content = {"format": _FORMATS[-1], "settings": self.settings, "shards": entries}
        content["sha256"] = files.digest(content)
        files.write_json(self.path / _MANIFEST, content, hint=files.KEPT)

    def tidy(self) -> None:
        """Remove the files of an unfinished set."""
        files.remove_folder(self.path / _PARTIAL)

    def _join(self, shard: int) -> None:
        """Write a shard if all its batches are finished."""
        batches = [self.batch_path(batch) for batch in self.layout.shard_batches(shard)]
        if shard in self._entries or not all(batch.exists() for batch in batches):
            return
        path = self.path / shard_name(shard)
        with files.replacing(path, hint=files.KEPT) as temporary, temporary.open("wb") as file:
            for batch in batches:
                file.write(batch.read_bytes())
            file.write(shards.end(file.tell()))
        self._entries[shard] = self._entry(shard)
        with files.refusals(self.batches, hint=files.KEPT):
            for batch in batches:
                batch.unlink()

    def _entry(self, shard: int) -> dict[str, Any]:
        path, images = self.path / shard_name(shard), len(self.layout.shard_images(shard))
        size, sha256 = path.stat().st_size, files.file_sha256(path)
        return {"file": path.name, "sha256": sha256, "bytes": size, "images": images}

    def _clear(self) -> None:
        """Remove an earlier set; settings last, so that shards are never without them. UsageError
        if none of its records shows that the files are those of a set.
        """
        records = [self.path / name for name in (_MANIFEST, RUN, _SETTINGS)]
        if not any(b"weights_sha256" in file.read_bytes() for file in records if file.is_file()):
            files.check_content(self.path, lambda name: False)
        with files.refusals(self.path):
            for path in sorted(self.path.iterdir()):
                if belongs(path.name) and path.name != _MANIFEST:
                    path.unlink()
            self.tidy()
            (self.path / _MANIFEST).unlink(missing_ok=True)


class Fault(NamedTuple):
    """A damaged file of a set, and the reason."""

    file: str
    reason: str


class SyntheticData:
    """A finished set, in a folder or at a URL; AssetError if there is none, or its `manifest`, the
    settings and the shards with their hashes, is damaged. A shard's hash is checked when the first
    of its images is read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = files.local_folder(path)
        manifest = _read_manifest(self.path)
        if manifest is None:
            place, fault, hint = repr(str(self.path)), "there is no synthetic set in", "draws one"
            if (self.path / _SETTINGS).exists():
                fault, hint = "there is no finished set in", "with the same settings continues it"
            raise AssetError(f"{fault} {place}", hint=f"`ppap synthesize` {hint}")
        self.manifest, settings = manifest, manifest["settings"]
        batch = settings["block" if self.manifest["format"] == 1 else "batch"]
        self._layout = Layout(settings["num"], batch, settings["shard"])
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
            path = self.path / shard_name(shard)
            if shard not in self._indices:
                if reason := self._damage(shard):
                    raise AssetError(f"{str(path)!r} {reason}", hint=_AGAIN)
                self._indices[shard] = shards.read_index(path)
            with path.open("rb") as file:
                for row in rows:
                    name = member_names(numbers[row], self.stages)[:-1][stage]
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
        names = [shard_name(shard) for shard in self._layout.shards]
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
        entry, path = self.manifest["shards"][shard], self.path / shard_name(shard)
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
        path, last = self.path / shard_name(shard), len(self.stages)
        index = shards.read_index(path)
        expected = {
            name: (number, stage)
            for number in self._layout.shard_images(shard)
            for stage, name in enumerate(member_names(number, self.stages))
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
