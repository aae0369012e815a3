"""The folder of a synthetic set, while it is being written.

    shard-00000.tar ...          the images
    manifest.json                settings and hashes; written last, so its presence says complete
    run.json                     when, with how many workers, and how long: all that may differ
                                 between two runs of the same settings
    .lock                        keeps two processes apart
    .partial/settings.json       what was asked for
    .partial/shard-00000.json    the hash of a finished shard, written before the shard
    .partial/DIGEST/00000        a finished block: members of a tar file, waiting for their shard

Each file takes its place by being renamed, after it is on the disk. So whatever ends the process,
what lies there is whole, and what is lost is the blocks that were being drawn. Blocks lie under the
digest of their settings: one that a dying worker still writes cannot get into another set.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from ppap_framework.data.files import (
    digest,
    file_sha256,
    locked,
    read_json,
    refusals,
    replacing,
    write_json,
)
from ppap_framework.data.layout import Layout
from ppap_framework.data.shards import end, shard_name
from ppap_framework.errors import AssetError, UsageError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "PARTIAL",
    "RUN",
    "SETTINGS",
    "SynthesisFolder",
    "check_content",
    "read_manifest",
]

FORMAT = 1
"""Of the manifest; it changes when its meaning does."""

MANIFEST, PARTIAL, RUN, SETTINGS = "manifest.json", ".partial", "run.json", "settings.json"
_SHARD = re.compile(r"shard-\d{5,}\.tar")
_TEMPORARY = re.compile(r"\.(shard-\d+\.tar|manifest\.json|run\.json)\.\d+\.tmp")
_ANEW = "give the same settings or another folder, or begin anew with --overwrite"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none.

    Raises:
        AssetError: Where it is damaged, or of another format.
    """
    file = path / MANIFEST
    manifest = read_json(file)
    if manifest is None:
        return None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise AssetError(f"{str(file)!r} is no manifest of a synthetic set")
    if manifest["format"] != FORMAT:
        raise AssetError(
            f"{str(file)!r} has format {manifest['format']}, and this version reads {FORMAT}",
            hint="update ppap-framework, or draw the set anew",
        )
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if manifest.get("sha256") != digest(content):
        raise AssetError(
            f"{str(file)!r} is damaged: its SHA-256 is not that of its content",
            hint="`ppap synthesize --overwrite` draws the set anew",
        )
    return manifest


def check_content(path: Path) -> None:
    """Accept a folder that holds a synthetic set, a part of one, or nothing, or is not there.

    Raises:
        UsageError: Where it holds anything else.
    """
    if not path.is_dir():
        return
    others = [
        entry.name
        for entry in path.iterdir()
        if not (
            entry.name.startswith(".")
            or entry.name in (MANIFEST, RUN)
            or _SHARD.fullmatch(entry.name)
        )
    ]
    if others:
        raise UsageError(
            f"{str(path)!r} holds other files, such as {min(others)!r}",
            hint="give a new or empty folder",
        )


@final
class SynthesisFolder:
    """Blocks go in, shards come out. Open it with `opened`."""

    def __init__(self, path: Path, settings: Mapping[str, Any], layout: Layout) -> None:
        self.path = path
        self.settings = settings
        self.layout = layout
        self._partial = path / PARTIAL
        self._blocks = self._partial / digest(settings)[:16]
        self._done: dict[int, dict[str, Any]] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, path: Path, settings: Mapping[str, Any], layout: Layout, *, overwrite: bool = False
    ) -> Iterator[SynthesisFolder]:
        """The folder, locked, made where it is not there.

        Args:
            path: Of the folder.
            settings: Everything that determines the images, as JSON.
            layout: How many images, and how they are cut.
            overwrite: Whether to remove a set that is there.

        Raises:
            UsageError: Where it holds other files, a set of other settings, or another process is
                writing to it.
            PpapError: Where it cannot be written.
        """
        check_content(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make folder {str(path)!r}: {error.strerror or error}",
                hint="give another folder",
            ) from error
        with locked(path / ".lock"):
            folder = cls(path, settings, layout)
            if overwrite:
                folder._clear()
            folder._check_settings()
            with refusals(path):
                folder._remove_temporary()
                folder._done = folder._whole_shards()
            yield folder

    @property
    def complete(self) -> bool:
        """Whether every shard is there and the manifest, too."""
        return len(self._done) == len(self.layout.shards) and (self.path / MANIFEST).exists()

    def begin(self) -> None:
        """Get ready to write.

        Raises:
            PpapError: Where that is refused.
        """
        with refusals(self.path):
            self._blocks.mkdir(parents=True, exist_ok=True)
        write_json(self._partial / SETTINGS, self.settings)
        for shard in self.layout.shards:
            self._assemble_if_ready(shard)

    def pending(self) -> list[int]:
        """The blocks that are still to be drawn."""
        return [
            block
            for shard in self.layout.shards
            if shard not in self._done
            for block in self.layout.shard_blocks(shard)
            if not self.block_path(block).exists()
        ]

    def block_path(self, block: int) -> Path:
        """Where a finished block is to be put."""
        return self._blocks / f"{block:05d}"

    def added(self, block: int) -> None:
        """Take note of a block that has been put in its place; its shard may now be whole.

        Raises:
            PpapError: Where that cannot be written.
        """
        self._assemble_if_ready(block * self.layout.block // self.layout.shard)

    def finish(self) -> None:
        """Write the manifest.

        Raises:
            PpapError: Where it cannot be written.
        """
        manifest = {
            "format": FORMAT,
            "settings": self.settings,
            "shards": [self._done[shard] for shard in self.layout.shards],
        }
        write_json(self.path / MANIFEST, {**manifest, "sha256": digest(manifest)})
        self.tidy()

    def tidy(self) -> None:
        """Remove what only an unfinished set needs.

        Raises:
            PpapError: Where that is refused.
        """
        if self._partial.exists():
            with refusals(self._partial):
                shutil.rmtree(self._partial)

    def _assemble_if_ready(self, shard: int) -> None:
        blocks = [self.block_path(block) for block in self.layout.shard_blocks(shard)]
        if shard in self._done or not all(block.exists() for block in blocks):
            return
        path = self.path / shard_name(shard)
        with replacing(path) as file:
            found, size = hashlib.sha256(), 0
            for part in (*(block.read_bytes() for block in blocks), b""):
                content = part or end(size)
                file.write(content)
                found.update(content)
                size += len(content)
            entry = {
                "file": path.name,
                "sha256": found.hexdigest(),
                "bytes": size,
                "images": len(self.layout.shard_images(shard)),
            }
            write_json(self._entry(shard), entry)
        self._done[shard] = entry
        with refusals(self._blocks):
            for block in blocks:
                block.unlink()

    def _check_settings(self) -> None:
        before = self._begun_with()
        if before is None:
            return
        found = differences(before, self.settings)
        if found:
            shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
            raise UsageError(
                f"{str(self.path)!r} was begun with other settings: {shown}", hint=_ANEW
            )

    def _begun_with(self) -> dict[str, Any] | None:
        """The settings of what lies there; None where nothing does."""
        manifest = read_manifest(self.path)
        begun: dict[str, Any] | None
        begun = manifest["settings"] if manifest else read_json(self._partial / SETTINGS)
        if begun is None:
            shards = [entry.name for entry in self.path.iterdir() if _SHARD.fullmatch(entry.name)]
            if shards:
                raise UsageError(
                    f"{str(self.path)!r} holds {min(shards)!r}, and does not say of what",
                    hint=_ANEW,
                )
        return begun

    def _whole_shards(self) -> dict[int, dict[str, Any]]:
        """What is known of the shards that are there and have the hash that they should."""
        manifest = read_manifest(self.path)
        whole = {}
        for shard in self.layout.shards:
            path = self.path / shard_name(shard)
            known = read_json(self._entry(shard)) or (manifest and manifest["shards"][shard])
            if known and path.exists() and file_sha256(path) == known["sha256"]:
                whole[shard] = known
        return whole

    def _remove_temporary(self) -> None:
        """Remove what a killed process was writing."""
        for entry in self.path.iterdir():
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink()

    def _entry(self, shard: int) -> Path:
        return (self._partial / shard_name(shard)).with_suffix(".json")

    def _clear(self) -> None:
        """Remove what an earlier call wrote, its settings last: shards are never without them."""
        with refusals(self.path):
            for entry in sorted(self.path.iterdir()):
                if _SHARD.fullmatch(entry.name) or entry.name == RUN:
                    entry.unlink()
        self.tidy()
        with refusals(self.path):
            (self.path / MANIFEST).unlink(missing_ok=True)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, such as "seed was 0, is now 1"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            difference
            for key in {**before, **now}
            for difference in differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if before == now else [f"{name} was {before}, is now {now}"]
