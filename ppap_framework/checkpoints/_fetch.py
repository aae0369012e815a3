"""From a card to its verified file, downloaded if that is necessary and allowed.

A file must match its published hash. If none is published, the hash of the first file that was used
is noted beside it, in the format of `sha256sum`, and must match from then on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib import import_module, resources
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ppap_framework.errors import AssetError
from ppap_framework.files import cache_dir, file_sha256, is_on
from ppap_framework.plugin import Card, ExpertBundle

_File: TypeAlias = Card | ExpertBundle

_log = logging.getLogger(__name__)
_off: ContextVar[bool] = ContextVar("ppap_offline", default=False)

_HUB = re.compile(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 16  # bytes; the most that is lost if a connection breaks
_PLAIN = {"Accept-Encoding": "identity"}  # lengths are otherwise those of compressed data


def location(card: _File) -> Path:
    """The path of a card's file, which may be missing; AssetError if its package is."""
    scheme = card.uri.partition("://")[0]
    if scheme == "package":
        return package_file(card.uri)
    name = _hub_parts(card)[2] if scheme == "hf" else PurePosixPath(urlsplit(card.uri).path).name
    return cache_dir() / card.component / card.name / (name or card.name)


def fetch(card: _File, *, offline: bool = False) -> Path:
    """The verified file of a card, downloaded if it is missing or damaged, unless `offline`.

    A file that was put by hand in the download's place is used as well. AssetError if it cannot be
    downloaded, or does not match the card or the note.
    """
    path = location(card)
    packaged = card.uri.startswith("package://")
    if not packaged and (not path.is_file() or _difference(path, card)):
        with without_downloads(offline):
            _download(card, path)
    check(card)
    if card.sha256 is None and not packaged and noted_sha256(path) is None:
        with contextlib.suppress(OSError):  # the cache may be read-only
            _note(path).write_text(f"{file_sha256(path)}  {path.name}\n")
    return path


def check(card: _File) -> None:
    """AssetError if the file of a card is missing, or differs from the card or from its note."""
    path, hint = location(card), _by_hand(card)
    if not path.is_file():
        raise AssetError(f"{card.name!r} is not here", hint=hint)
    if difference := _difference(path, card):
        fault = f"{str(path)!r} is not the file of {card.name!r}: {difference}"
        raise AssetError(fault, hint=hint)
    noted = noted_sha256(path) if card.sha256 is None else None
    if noted is not None and noted != (found := file_sha256(path)):
        fault = f"{str(path)!r} is not what it was when it was used first: its SHA-256 is {found}"
        hint = f"delete it to fetch it again; delete {str(_note(path))!r} to trust what is there"
        raise AssetError(f"{fault} instead of {noted}", hint=hint)


def noted_sha256(path: Path) -> str | None:
    """The noted SHA-256 of a file; None if there is no note."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if match := re.match(r"\s*(\S{64})(\s|$)", _note(path).read_text()):
            return match[1]
    return None


def package_file(uri: str) -> Path:
    """The path of `package://package/path/in/package`; `AssetError` if there is no such file."""
    package, _, inner = uri.removeprefix("package://").partition("/")
    try:
        folder = resources.files(import_module(package))
    except (ImportError, ValueError) as error:
        fault = f"{uri!r} lies in package {package!r}, which cannot be imported: {error}"
        hint = f"pip install {package.split('.')[0].replace('_', '-')}"
        raise AssetError(fault, hint=hint) from error
    path = Path(str(folder.joinpath(inner)))
    if not inner or not path.is_file():
        fault = f"package {package!r} has no file {inner!r}"
        raise AssetError(fault, hint="install it again; its files are incomplete")
    return path


def _hub_parts(card: _File) -> tuple[str, str, str]:
    """hf://owner/name[@revision]/path/of/file as (repository, revision, file)."""
    if parts := _HUB.fullmatch(card.uri):
        return parts[1], parts[2] or "main", parts[3]
    fault = f"card {card.name!r} has uri {card.uri!r}"
    raise AssetError(fault, hint="a file of the hub is hf://owner/name/file")


def _url(card: _File) -> str:
    """The address for a browser; `$PPAP_MIRROR` replaces the host of https:// addresses."""
    if card.uri.startswith("hf://"):
        repository, revision, file = _hub_parts(card)
        return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"
    mirror = os.environ.get("PPAP_MIRROR")
    return f"{mirror.rstrip('/')}{urlsplit(card.uri).path}" if mirror else card.uri


def _by_hand(card: _File) -> str:
    if card.uri.startswith("package://"):
        return "install its package again"
    flag = "--experts"
    if isinstance(card, Card):
        flag = "--checkpoint" if card.kind == "backend" else "--guider-checkpoint"
    return f"download {_url(card)} and put it at {location(card)}, or name it with {flag} PATH"


def _difference(path: Path, card: _File) -> str:
    """How the file differs from its card; empty if it matches."""
    size = path.stat().st_size
    if card.size is not None and size != card.size:
        return f"it has {size} bytes instead of {card.size}"
    if card.sha256 is not None and file_sha256(path) != card.sha256:
        return f"its SHA-256 is {file_sha256(path)} instead of {card.sha256}"
    return ""


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _download(card: _File, path: Path) -> None:
    with downloading(f"{card.name!r} from {_url(card)}", _by_hand(card), here=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        if card.uri.startswith("hf://"):
            from huggingface_hub import hf_hub_download

            repository, revision, file = _hub_parts(card)
            folder = cache_dir() / card.component / card.name
            hf_hub_download(repository, file, revision=revision, local_dir=folder)
            return
        part = download(_url(card), path)
        if difference := _difference(part, card):
            part.unlink()
            fault = f"{_url(card)} is not the file of {card.name!r}: {difference}"
            raise AssetError(fault, hint=_by_hand(card))
        _note(path).unlink(missing_ok=True)
        part.replace(path)


def download(url: str, path: Path) -> Path:
    """Download a file to `path`.part and return that path; the folder must exist.

    An earlier part is continued only if the server says that the file is still the same. OSError
    if the server, the network or the disk fails.
    """
    import pooch
    import requests

    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.tag")
    with requests.head(url, headers=_PLAIN, allow_redirects=True, timeout=_TIMEOUT) as head:
        if head.status_code not in (405, 501):  # some servers do not know HEAD
            head.raise_for_status()
        told = head.headers if head.ok else {}
    total, tag = int(told.get("Content-Length", 0)), told.get("ETag") or told.get("Last-Modified")
    stated = f"{tag} {total}"
    known = tag and total and told.get("Accept-Ranges") == "bytes"
    begun = known and part.is_file() and note.is_file() and note.read_text() == stated
    done = part.stat().st_size if begun else 0
    if total - done > (free := shutil.disk_usage(path.parent).free):
        raise OSError(errno.ENOSPC, f"{total - done} bytes are to come, {free} are free", str(path))
    note.write_text(stated)
    if not begun or done < total:
        headers = {**_PLAIN, "Range": f"bytes={done}-"} if done else _PLAIN
        how: Any = {"chunk_size": _CHUNK, "timeout": _TIMEOUT, "headers": headers}
        fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), **how)
        with part.open("ab" if done else "wb") as file:
            fetch(url, file, None)
    if total and (size := part.stat().st_size) != total:
        if size > total:  # the server sent something else
            part.unlink()
        raise OSError(f"{size} of {total} bytes came; the same command continues from there")
    note.unlink()
    return part


def downloads_are_off() -> bool:
    """Whether `$PPAP_OFFLINE` or `without_downloads` forbids downloads."""
    return _off.get() or is_on("PPAP_OFFLINE")


@contextlib.contextmanager
def without_downloads(off: bool = True) -> Iterator[None]:
    """A context in which nothing is downloaded and caches are used; no change if `off` is False."""
    before = _off.set(off or _off.get())
    try:
        yield
    finally:
        _off.reset(before)


@contextlib.contextmanager
def downloading(what: str, hint: str, *, here: bool = True) -> Iterator[None]:
    """A context in which a library gets files, called `what`, by itself.

    If downloads are off, the Hugging Face hub's library uses only its cache. It logs nothing of its
    own: failures are raised, and retries are logged once. `hint` says how to get the files by hand;
    `here` whether a copy may be in the library's cache. AssetError if there is none and downloads
    are off, or the download fails in any way.
    """
    off = downloads_are_off()
    absent = AssetError(f"there is no copy of {what}, and downloads are off", hint=hint)
    if off and not here:
        raise absent
    try:
        with _quiet_hub(off):
            yield
    except AssetError:
        raise
    except Exception as error:  # the network, the disk, and the errors of several libraries
        if off and type(error).__name__ == "LocalEntryNotFoundError":
            raise absent from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if type(error).__name__ in ("ConnectionError", "ConnectTimeout"):  # long and useless
            reason = "there is no connection"
        raise AssetError(f"cannot download {what}: {reason}", hint=hint) from error


@contextlib.contextmanager
def _quiet_hub(off: bool) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    requests = logging.getLogger("huggingface_hub.utils._http")
    said: list[str] = []

    def say_once(record: logging.LogRecord) -> bool:
        if "[Retry " in record.getMessage() and not said:
            said.append("the hub cannot be reached; trying again for a while")
            _log.warning(said[0])
        return False

    with contextlib.ExitStack() as stack:
        stack.callback(setattr, constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
        stack.callback(hub_logging.set_verbosity, hub_logging.get_verbosity())
        stack.callback(requests.setLevel, requests.level)
        stack.callback(requests.removeFilter, say_once)
        # timm has no argument for this; it also refuses the hub's own requests.
        constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or off
        hub_logging.set_verbosity(logging.CRITICAL)
        requests.setLevel(logging.WARNING)
        requests.addFilter(say_once)
        yield


def in_torch_hub(url: str) -> bool:
    """Whether the cache of `torch.hub` has the file of a URL."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name).is_file()
