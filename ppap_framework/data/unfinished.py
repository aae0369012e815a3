"""A synthetic set that is being drawn by any number of processes, whose machines share its folder.

Processes claim what is to be done next: a batch, a shard whose batches are finished, the manifest.
Every file is written once, atomically, so an interruption loses only unfinished batches. Each lies
in a folder named by the digest of the settings: a worker taken for dead writes to no other set.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppap_framework import files
from ppap_framework.data import shards
from ppap_framework.data.claims import Claims
from ppap_framework.data.folder import (
    ANEW,
    DAMAGED,
    FORMATS,
    MANIFEST,
    PARTIAL,
    RUN,
    SETTINGS,
    belongs,
    read_manifest,
)
from ppap_framework.data.shards import Layout, shard_name
from ppap_framework.errors import PpapError, UsageError

_log = logging.getLogger(__name__)


class SynthesisFolder:
    """Shares the batches of a set among processes, and joins them into shards; PpapError if a file
    cannot be written. Create it with `opened`. `settings` are everything that determines the
    images, as JSON; `label` is that of this worker.
    """

    label = ""

    def __init__(self, path: Path, settings: Mapping[str, Any], layout: Layout) -> None:
        self.path, self.settings, self.layout = path, settings, layout
        self.batches = path / PARTIAL / files.digest(settings)[:16]
        self._claims = Claims(self.batches)

    @classmethod
    def opened(
        cls, path: Path, settings: Mapping[str, Any], layout: Layout, *, overwrite: bool = False
    ) -> SynthesisFolder:
        """The folder, created if it is missing; `overwrite` removes an earlier set. UsageError if
        it holds a set with other settings, or other processes write to what is to be removed.
        """
        folder = cls(path, settings, layout)
        with files.refusals(path, UsageError, files.ELSEWHERE):
            path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            with files.opened(path):
                folder._clear()
        before, strays = read_manifest(path), [file.name for file in path.glob("shard-*.tar")]
        if before is not None:
            files.check_settings(path, before["settings"], settings)
            folder._reopen(before["shards"])
        elif strays and not (path / SETTINGS).exists():
            fault = f"{str(path)!r} holds {min(strays)!r} without its settings"
            raise UsageError(fault, hint="give another folder, or begin anew with --overwrite")
        if not folder.complete:
            folder._begin()
        return folder

    @property
    def complete(self) -> bool:
        """Whether the manifest exists."""
        return (self.path / MANIFEST).exists()

    @property
    def missing(self) -> list[int]:
        """The batches that are not finished."""
        return [int(name) for name in self._todo() if name.isdecimal()]

    @property
    def left(self) -> int:
        """Number of images that are not finished."""
        return sum(len(self.layout.batch_images(batch)) for batch in self.missing)

    def claimed(self) -> Generator[int, None, None]:
        """Claim one batch after another that is to be `added`, until the set is complete."""
        with self._late(), self._claims.working(self.label):
            idle = 0
            while todo := self._todo():
                name = self._claims.take(todo)
                if name is None:  # others are at work on all that is left
                    time.sleep(min(0.05 * 2**idle, 2.0))
                    idle = min(idle + 1, 6)
                    continue
                idle = 0
                if name in self._todo():  # it may have been made before it was claimed
                    if name.isdecimal():
                        yield int(name)
                    else:
                        with self._late(name):
                            self._finish() if name == MANIFEST else self._join(name)
                self._claims.release()

    def added(self, batch: int, members: Iterable[bytes]) -> None:
        """Write a claimed batch, members of tar files, unless another worker was faster."""
        path = self.batches / f"{batch:05d}"
        with self._late(path.name), files.replacing(path, hint=files.KEPT, once=True) as temporary:
            temporary.write_bytes(b"".join(members))

    def tidy(self) -> None:
        """Remove the files of an unfinished set."""
        files.remove_folder(self.path / PARTIAL)
        with files.in_turn(self.path):  # others may write their records
            files.remove_temporary(self.path, belongs)

    def _todo(self) -> list[str]:
        """Names of the files that can be made next; empty if the set is complete."""
        with files.refusals(self.batches, hint=files.KEPT, action="read"):
            try:
                # In this order: a batch that was joined in between is in its shard.
                paths = [*self.batches.iterdir(), *self.path.iterdir()]
            except OSError:
                if self.complete:
                    return []
                raise
        if MANIFEST in (there := {path.name for path in paths}):
            return []
        todo: list[str] = []
        for shard in self.layout.shards:
            if (name := shard_name(shard)) not in there:
                batches = [f"{batch:05d}" for batch in self.layout.shard_batches(shard)]
                todo += [batch for batch in batches if batch not in there] or [name]
        return todo or [MANIFEST]

    @contextlib.contextmanager
    def _late(self, name: str | None = None) -> Iterator[None]:
        """A context for making a file, or all, without an error if others made it meanwhile."""
        try:
            yield
        except PpapError:
            if (todo := self._todo()) and (name is None or name in todo):
                raise

    def _join(self, name: str) -> None:
        """Write a shard, and before that its entry of the manifest."""
        [shard] = (shard for shard in self.layout.shards if shard_name(shard) == name)
        batches = [self.batches / f"{batch:05d}" for batch in self.layout.shard_batches(shard)]
        with files.replacing(self.path / name, hint=files.KEPT, once=True) as temporary:
            with temporary.open("wb") as file:
                for batch in batches:
                    file.write(batch.read_bytes())
                file.write(shards.end(file.tell()))
            entry = self._entry(shard, temporary)
            files.write_json(self._noted(shard), entry, hint=files.KEPT, once=True)
        with files.refusals(self.batches, hint=files.KEPT):
            for batch in batches:
                batch.unlink(missing_ok=True)

    def _finish(self) -> None:
        """Write the manifest, or set shards aside that were damaged since they were written."""
        entries = [self._entry(shard) for shard in self.layout.shards]
        noted = [files.read_json(self._noted(shard)) for shard in self.layout.shards]
        damaged = [k for k, entry in enumerate(entries) if noted[k] not in (None, entry)]
        if damaged or None in entries:
            self._discard(damaged)
        else:
            content = {"format": FORMATS[-1], "settings": self.settings, "shards": entries}
            content["sha256"] = files.digest(content)
            files.write_json(self.path / MANIFEST, content, hint=files.KEPT, once=True)

    def _reopen(self, entries: Sequence[Any]) -> None:
        """Begin to mend a finished set if a shard is missing or not that of its entry."""
        if damaged := [k for k in self.layout.shards if self._entry(k) != entries[k]]:
            self._begin()
            self._discard(damaged)
            with files.refusals(self.path, hint=files.KEPT):
                (self.path / MANIFEST).unlink(missing_ok=True)

    def _begin(self) -> None:
        """Make the folder of batches, unless another process has begun with other settings."""
        begun = self.path / SETTINGS
        with files.refusals(self.batches, hint=files.KEPT):
            begun.parent.mkdir(exist_ok=True)
            files.write_json(begun, self.settings, hint=files.KEPT, once=True)
            files.check_settings(self.path, files.read_json(begun, hint=ANEW), self.settings)
            self.batches.mkdir(exist_ok=True)

    def _discard(self, damaged: Iterable[int]) -> None:
        for shard in damaged:
            path, fault = self.path / shard_name(shard), "is missing"
            aside = path.with_name(f"{path.name}{DAMAGED}")
            with files.refusals(self.path, hint=files.KEPT):
                with contextlib.suppress(FileNotFoundError):
                    path.replace(aside)
                    fault = f"is damaged and was set aside as {aside.name!r}"
                self._noted(shard).unlink(missing_ok=True)
            _log.warning("%s %s; it is drawn again", path, fault)

    def _noted(self, shard: int) -> Path:
        """Where the entry of a shard is kept until there is a manifest."""
        return self.batches / f"{shard_name(shard)}.json"

    def _entry(self, shard: int, file: Path | None = None) -> dict[str, Any] | None:
        """The entry of a shard, or of the file that will be it; None if there is none."""
        path, images = file or self.path / shard_name(shard), len(self.layout.shard_images(shard))
        if not path.exists():
            return None
        size, sha256 = path.stat().st_size, files.file_sha256(path)
        return {"file": shard_name(shard), "sha256": sha256, "bytes": size, "images": images}

    def _clear(self) -> None:
        """Remove an earlier set; settings last, so that shards are never without them. UsageError
        if none of its records shows that the files are those of a set, or it is being written.
        """
        if any(Claims(folder).busy() for folder in (self.path / PARTIAL).glob("*/")):
            fault = f"another process is writing to {str(self.path)!r}"
            raise UsageError(fault, hint="wait for it, or give another folder")
        records = [self.path / name for name in (MANIFEST, RUN, SETTINGS)]
        if not any(b"weights_sha256" in file.read_bytes() for file in records if file.is_file()):
            files.check_content(self.path, lambda name: False)
        with files.refusals(self.path):
            for path in sorted(self.path.iterdir()):
                if belongs(path.name) and path.name != MANIFEST:
                    path.unlink()
            files.remove_folder(self.path / PARTIAL)
            (self.path / MANIFEST).unlink(missing_ok=True)
