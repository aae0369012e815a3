"""From a card to its verified file, downloaded if necessary.

A file must match its published hash. If none is published, the hash of the first file that was used
is noted beside it, in the format of `sha256sum`, and must match from then on.
"""

from __future__ import annotations

import contextlib
import os
import re
from importlib import import_module, resources
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import urlsplit

from ppap_framework.checkpoints._download import download
from ppap_framework.checkpoints._offline import downloading, without_downloads
from ppap_framework.errors import AssetError
from ppap_framework.files import cache_dir, file_sha256
from ppap_framework.plugin import Card, ExpertBundle

_File: TypeAlias = Card | ExpertBundle

_HUB = re.compile(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")


def location(card: _File) -> Path:
    """The path of a card's file, whether it exists or not.

    Raises:
        AssetError: If its package is missing, or its address is malformed.
    """
    if card.uri.startswith("package://"):
        return package_file(card.uri)
    folder = cache_dir() / card.component / card.name
    if card.uri.startswith("hf://"):
        return folder / _hub_parts(card)[2]
    return folder / (PurePosixPath(urlsplit(card.uri).path).name or card.name)


def fetch(card: _File, *, offline: bool = False) -> Path:
    """The verified file of a card, downloaded if it is missing or damaged.

    A file that was put by hand in the download's place is used as well. `offline` raises instead of
    downloading, as `downloads_are_off` does.

    Raises:
        AssetError: If it cannot be downloaded, or does not match the card or the note.
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
    """Compare the file of a card with the card and with its note.

    Raises:
        AssetError: If it is missing or differs.
    """
    path = location(card)
    if not path.is_file():
        raise AssetError(f"{card.name!r} is not here", hint=_by_hand(card, path))
    if difference := _difference(path, card):
        raise AssetError(
            f"{str(path)!r} is not the file of {card.name!r}: {difference}",
            hint=_by_hand(card, path),
        )
    noted = noted_sha256(path) if card.sha256 is None else None
    if noted is not None and noted != file_sha256(path):
        raise AssetError(
            f"{str(path)!r} is not what it was when it was used first: its SHA-256 is "
            f"{file_sha256(path)} instead of {noted}",
            hint=f"delete it to fetch it again; delete {str(_note(path))!r} to trust what is there",
        )


def noted_sha256(path: Path) -> str | None:
    """The noted SHA-256 of a file; None if there is no note."""
    try:
        digest = _note(path).read_text().split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return digest if len(digest) == 64 else None


def package_file(uri: str) -> Path:
    """The path of `package://package/path/in/package`; `AssetError` if there is no such file."""
    package, _, inner = uri.removeprefix("package://").partition("/")
    try:
        folder = resources.files(import_module(package))
    except (ImportError, ValueError) as error:
        raise AssetError(
            f"{uri!r} lies in package {package!r}, which cannot be imported: {error}",
            hint=f"pip install {package.split('.')[0].replace('_', '-')}",
        ) from error
    path = Path(str(folder.joinpath(inner)))
    if not inner or not path.is_file():
        raise AssetError(
            f"package {package!r} has no file {inner!r}",
            hint="install it again; its files are incomplete",
        )
    return path


def _hub_parts(card: _File) -> tuple[str, str, str]:
    """hf://owner/name[@revision]/path/of/file as (repository, revision, file)."""
    parts = _HUB.fullmatch(card.uri)
    if parts is None:
        raise AssetError(
            f"card {card.name!r} has uri {card.uri!r}",
            hint="a file of the hub is hf://owner/name/file",
        )
    return parts[1], parts[2] or "main", parts[3]


def _url(card: _File) -> str:
    """The address for a browser; `$PPAP_MIRROR` replaces the host of https:// addresses."""
    if not card.uri.startswith("hf://"):
        mirror = os.environ.get("PPAP_MIRROR")
        return f"{mirror.rstrip('/')}{urlsplit(card.uri).path}" if mirror else card.uri
    repository, revision, file = _hub_parts(card)
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


def _by_hand(card: _File, path: Path) -> str:
    if card.uri.startswith("package://"):
        return "install its package again"
    flag = "--experts"
    if isinstance(card, Card):
        flag = "--checkpoint" if card.kind == "backend" else "--guider-checkpoint"
    return f"download {_url(card)} and put it at {path}, or name it with {flag} PATH"


def _download(card: _File, path: Path) -> None:
    with downloading(f"{card.name!r} from {_url(card)}", _by_hand(card, path), here=False):
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
            raise AssetError(
                f"{_url(card)} is not the file of {card.name!r}: {difference}",
                hint=_by_hand(card, path),
            )
        _note(path).unlink(missing_ok=True)
        part.replace(path)


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
