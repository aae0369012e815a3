"""Where the file of a card is, and how it comes there."""

from __future__ import annotations

import os
import sys
from importlib import import_module, resources
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import urlsplit

from ppap_framework.checkpoints._digest import file_sha256
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card, ExpertBundle

__all__ = ["cache_dir", "fetch", "package_file"]

File: TypeAlias = Card | ExpertBundle


def cache_dir() -> Path:
    """The folder of downloads: `$PPAP_CACHE_DIR`, or the user's cache folder."""
    if chosen := os.environ.get("PPAP_CACHE_DIR"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("ppap"))


def fetch(card: File, *, offline: bool = False) -> Path:
    """The file of a card: downloaded when missing or damaged, of the size and hash that it states.

    A file that was put by hand where the download would have gone serves as well.

    Raises:
        AssetError: Where it cannot be had, or is not what the card says.
    """
    if card.uri.startswith("package://"):
        path = package_file(card.uri)
    else:
        path = _target(card)
        if not path.is_file() or _difference(path, card):
            if offline:
                raise AssetError(
                    f"{card.name!r} is not here, and downloads are off", hint=_by_hand(card, path)
                )
            _download(card, path)
    if difference := _difference(path, card):
        raise AssetError(
            f"{str(path)!r} is not the file of {card.name!r}: {difference}",
            hint=_by_hand(card, path),
        )
    return path


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
    if not card.uri.startswith("hf://"):
        return card.uri
    repository, revision, file = _hub_parts(card)
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


def _by_hand(card: File, path: Path) -> str:
    if card.uri.startswith("package://"):
        return "install its package again"
    return f"download {_url(card)} and put it at {path}"


def _download(card: File, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if card.uri.startswith("hf://"):
            import huggingface_hub

            repository, revision, file = _hub_parts(card)
            folder = cache_dir() / card.component / card.name
            huggingface_hub.hf_hub_download(repository, file, revision=revision, local_dir=folder)
        else:
            import pooch

            pooch.get_logger().setLevel("WARNING")
            pooch.retrieve(
                card.uri,
                known_hash=f"sha256:{card.sha256}" if card.sha256 else None,
                fname=path.name,
                path=path.parent,
                progressbar=sys.stderr.isatty(),
            )
    except Exception as error:  # the network, the disk, and two libraries with errors of their own
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"cannot download {card.name!r} from {_url(card)}: {type(error).__name__}: {reason}",
            hint=_by_hand(card, path),
        ) from error


def _difference(path: Path, card: File) -> str:
    """In what the file differs from its card; empty where it does not."""
    size = path.stat().st_size
    if card.size is not None and size != card.size:
        return f"it has {size} bytes instead of {card.size}"
    if card.sha256 is not None and file_sha256(path) != card.sha256:
        return f"its SHA-256 is {file_sha256(path)} instead of {card.sha256}"
    return ""
