"""What kind of file of tensors a path is, its metadata and its tensors."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ppap_framework.checkpoints._archive import load_archive
from ppap_framework.errors import AssetError

__all__ = ["Container", "container", "read_metadata", "read_tensors"]

Container = Literal["safetensors", "zip", "pickle"]
"""Tensors of the first two are mapped from the file."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_MAGIC = 64  # bytes


def read_metadata(path: Path) -> dict[str, str]:
    """The strings that a safetensors file carries beside its tensors; none for other files.

    The file is verified: a safetensors file by its header, a pickle by reading it.

    Raises:
        AssetError: If it is missing, damaged, of another kind, or wants code to run.
    """
    kind = container(path)
    if kind != "safetensors":
        with _reading(path):
            load_archive(path, zipped=kind == "zip")
        return {}
    with _reading(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU; changes to them stay in memory.

    Raises:
        AssetError: As `read_metadata`.
    """
    kind = container(path)
    with _reading(path):
        if kind == "safetensors":
            return load_file(path)
        return load_archive(path, zipped=kind == "zip")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AssetError(
            f"{str(path)!r} is not a sound safetensors file: {reason[:300]}",
            hint="it is truncated or damaged; fetch or save it again",
        ) from error


def container(path: Path) -> Container:
    """The kind of a file, by its first bytes and, if those are not known, its name.

    Raises:
        AssetError: If it is missing, empty or of another kind.
    """
    if path.is_dir():
        raise AssetError(f"{str(path)!r} is a folder, not a checkpoint", hint=_neighbors(path, ""))
    if not path.is_file():
        raise AssetError(f"there is no file {str(path)!r}", hint=_neighbors(path.parent, path.name))
    with _reading(path), path.open("rb") as file:
        first = file.read(_MAGIC)
    if not first:
        raise AssetError(f"{str(path)!r} is empty", hint="fetch or save it again")
    if first[8:9] == b"{":  # the header, after its length
        return "safetensors"
    if first.startswith((b"PK\x03\x04", b"\x80")):  # torch.save writes zip, long ago bare pickles
        if path.suffix == ".safetensors":
            raise AssetError(
                f"{str(path)!r} is not safetensors but a pickle under a false name",
                hint="do not trust it; if you know better, rename it to end in .pt",
            )
        return "zip" if first.startswith(b"PK") else "pickle"
    if first.startswith(b"version https://git-lfs"):
        raise AssetError(
            f"{str(path)!r} is a pointer of Git LFS, not the file", hint="type `git lfs pull`"
        )
    if first.lstrip().startswith(b"<"):
        raise AssetError(
            f"{str(path)!r} is a web page, not a checkpoint", hint="download the file itself"
        )
    if path.suffix == ".safetensors":
        return "safetensors"  # a damaged one: its reader says how
    raise AssetError(
        f"{str(path)!r} is neither a safetensors file nor one that torch.save wrote",
        hint=f"a checkpoint ends in one of {', '.join(_SUFFIXES)}",
    )


def _neighbors(folder: Path, name: str) -> str:
    try:
        files = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)
    except OSError:
        return f"there is no folder {str(folder)!r} either"
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.5) or files[:3]
    where = repr(str(folder))
    return f"in {where} there is {', '.join(close)}" if close else f"{where} holds no checkpoints"
