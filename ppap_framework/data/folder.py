"""The folder of a synthetic set while it is written.

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
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from ppap_framework import resume
from ppap_framework.data.shards import Layout, end, shard_name
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.files import digest, file_sha256, read_json, refusals, replacing, write_json

FORMATS = (1, 2)
"""Readable formats of the manifest; the last is written. Format 1 called a batch a block."""

MANIFEST, RUN, PARTIAL = "manifest.json", "run.json", ".partial"
SETTINGS = f"{PARTIAL}/settings.json"
_ANEW = "`ppap synthesize --overwrite` draws the set anew"


def belongs(name: str) -> bool:
    """Whether a file of this name belongs to a synthetic set."""
    return name in (MANIFEST, RUN) or re.fullmatch(r"shard-\d{5,}\.tar", name) is not None


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, if there is one; AssetError if it is damaged or of another format."""
    manifest = read_json(path / MANIFEST, hint=_ANEW)
    if manifest is None:
        return None
    fault = ""
    if not isinstance(manifest, dict) or "format" not in manifest:
        fault = "is no manifest of a synthetic set"
    elif manifest["format"] not in FORMATS:
        fault = f"has format {manifest['format']}, and this version reads {FORMATS[-1]}"
    elif manifest.get("sha256") != digest({k: v for k, v in manifest.items() if k != "sha256"}):
        fault = "is damaged: its SHA-256 is not that of its content"
    if fault:
        raise AssetError(f"{str(path / MANIFEST)!r} {fault}", hint=_ANEW)
    return manifest


@final
class SynthesisFolder:
    """Joins finished batches into shards. Create it with `opened`.

    Every method raises `PpapError` if a file cannot be written.

    Attributes:
        settings: Everything that determines the images, as JSON.
        batches: Folder of finished batches.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], layout: Layout) -> None:
        self.path, self.settings, self.layout = path, settings, layout
        self.batches = path / PARTIAL / digest(settings)[:16]
        self._entries: dict[int, dict[str, Any]] = {}  # entries of the manifest by shard

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path, settings: Mapping[str, Any], layout: Layout, *, overwrite: bool = False
    ) -> Iterator[SynthesisFolder]:
        """Lock the folder, created if it is missing; `overwrite` removes an earlier set.

        UsageError if it holds a set with other settings, or another process writes to it.
        """
        with resume.opened(path):
            folder = cls(path, settings, layout)
            if overwrite:
                folder._clear()
            manifest = read_manifest(path)
            before = manifest["settings"] if manifest else read_json(path / SETTINGS, hint=_ANEW)
            if before is not None:
                resume.check_settings(path, before, settings)
            elif shards := [file.name for file in path.glob("shard-*.tar")]:
                raise UsageError(
                    f"{str(path)!r} holds {min(shards)!r} without its settings",
                    hint="give another folder, or begin anew with --overwrite",
                )
            resume.remove_temporary(path, belongs)
            for shard in layout.shards:
                if (path / shard_name(shard)).exists():
                    entry = folder._entry(shard)
                    if manifest is None or manifest["shards"][shard] == entry:
                        folder._entries[shard] = entry
            yield folder

    @property
    def complete(self) -> bool:
        """Whether the manifest and every shard exist and match."""
        return len(self._entries) == len(self.layout.shards) and (self.path / MANIFEST).exists()

    def missing(self) -> list[int]:
        """Note the settings; return the batches that are to be drawn."""
        write_json(self.path / SETTINGS, self.settings, hint=resume.KEPT)
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
        shards = [self._entries[shard] for shard in self.layout.shards]
        content = {"format": FORMATS[-1], "settings": self.settings, "shards": shards}
        content["sha256"] = digest(content)
        write_json(self.path / MANIFEST, content, hint=resume.KEPT)

    def tidy(self) -> None:
        """Remove the files of an unfinished set."""
        with refusals(self.path):
            if (self.path / PARTIAL).exists():
                shutil.rmtree(self.path / PARTIAL)

    def _join(self, shard: int) -> None:
        """Write a shard if all its batches are finished."""
        batches = [self.batch_path(batch) for batch in self.layout.shard_batches(shard)]
        if shard in self._entries or not all(batch.exists() for batch in batches):
            return
        path = self.path / shard_name(shard)
        with replacing(path, hint=resume.KEPT) as temporary, temporary.open("wb") as file:
            for batch in batches:
                file.write(batch.read_bytes())
            file.write(end(file.tell()))
        self._entries[shard] = self._entry(shard)
        with refusals(self.batches, hint=resume.KEPT):
            for batch in batches:
                batch.unlink()

    def _entry(self, shard: int) -> dict[str, Any]:
        path, images = self.path / shard_name(shard), len(self.layout.shard_images(shard))
        size, sha256 = path.stat().st_size, file_sha256(path)
        return {"file": path.name, "sha256": sha256, "bytes": size, "images": images}

    def _clear(self) -> None:
        """Remove an earlier set; settings last, so that shards are never without them."""
        with refusals(self.path):
            for path in sorted(self.path.iterdir()):
                if belongs(path.name) and path.name != MANIFEST:
                    path.unlink()
            self.tidy()
            (self.path / MANIFEST).unlink(missing_ok=True)
