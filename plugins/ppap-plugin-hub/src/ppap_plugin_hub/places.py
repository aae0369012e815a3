"""Places where files are shared: a repository of the Hugging Face Hub, or a folder of any file
system that fsspec knows.

A place lists its files with what it states about each, and gives and takes files. What comes from a
place is compared with its listing before it gets its name here.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping
from pathlib import Path

import attrs

from ppap_framework.checkpoints import downloads_are_off
from ppap_framework.errors import AssetError
from ppap_framework.files import file_sha256, is_on, replacing

_CHUNK = 1 << 20


@attrs.frozen
class Listed:
    """What a listing states about a file; None for what it does not state. `git_sha1` is the hash
    of a blob in git, which the Hub states of small files.
    """

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    def difference(self, path: Path) -> str:
        """How a file differs from its listing; empty if it does not."""
        if self.size is not None and (size := path.stat().st_size) != self.size:
            return f"it has {size} bytes, and the listing says {self.size}"
        if self.sha256 is not None and (found := file_sha256(path)) != self.sha256:
            return f"its SHA-256 is {found}, and the listing says {self.sha256}"
        if self.git_sha1 is not None and (found := _git_sha1(path)) != self.git_sha1:
            return f"its hash in git is {found}, and the listing says {self.git_sha1}"
        return ""

    def is_file(self, path: Path) -> bool:
        """Whether a hash of the listing shows that it is this file."""
        return bool(self.sha256 or self.git_sha1) and not self.difference(path)


def _git_sha1(path: Path) -> str:
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            found.update(part)
    return found.hexdigest()


class Place(abc.ABC):
    """A folder elsewhere. Every fault of it is a `PpapError` in one line: an `AssetError` if the
    place is read.
    """

    url: str
    """As it is typed."""

    @abc.abstractmethod
    def listing(self) -> dict[str, Listed]:
        """The files of the place, by their path in it."""

    @abc.abstractmethod
    def put(self, files: Mapping[str, Path], message: str) -> None:
        """Write files, of which the last marks the others as complete."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a small file."""

    @abc.abstractmethod
    def _download(self, name: str, path: Path) -> None: ...

    def prepare(self) -> None:  # noqa: B027 - most places are ready
        """Make the place ready to be written to; nothing by default."""

    def fetch(self, name: str, path: Path, listed: Listed) -> None:
        """Write a file of the place to `path`, if it is what the listing says."""
        with replacing(path, AssetError) as draft:
            self._download(name, draft)
            if difference := listed.difference(draft):
                fault = f"{name!r} of {self.url} did not come as it is there: {difference}"
                raise AssetError(fault, hint="type it again; if it stays so, the file is damaged")


def network_is_off() -> bool:
    """Whether the user keeps this machine off the network."""
    return downloads_are_off() or is_on("HF_HUB_OFFLINE")


def offline(url: str) -> AssetError:
    """The error for a place that cannot be reached without the network."""
    variable = next((n for n in ("PPAP_OFFLINE", "HF_HUB_OFFLINE") if is_on(n)), "")
    hint = f"unset {variable}" if variable else "leave out --offline"
    return AssetError(f"cannot reach {url}: downloads are off", hint=hint)
