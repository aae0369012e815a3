"""Files that are complete or absent, however the process ends; JSON and hashes.

Functions that write raise `PpapError` if the system refuses.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ppap_framework.errors import AssetError, PpapError

_FLAT = re.compile(r"([\[{])\n\s*([^][{}]*?)\s*\n\s*([\]}])")  # no string contains a line break
_WIDTH = 100
_SETTLED = 2e9  # ns; within a tick of a file system's clock, a file can change and keep its time


def cache_dir() -> Path:
    """The folder of downloads: `$PPAP_CACHE_DIR`, or a folder in the user's cache."""
    if chosen := os.environ.get("PPAP_CACHE_DIR"):
        return expanded(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("ppap"))


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with its ~ expanded; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises


def is_on(variable: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable is set to anything but a word for no."""
    return environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off")


@contextlib.contextmanager
def refusals(
    path: Path, error: type[PpapError] = PpapError, hint: str = "", action: str = "write"
) -> Iterator[None]:
    """A context in which an `OSError` becomes an error of the given type that names the path."""
    try:
        yield
    except OSError as refused:
        fault = f"cannot {action} {str(path)!r}: {refused.strerror or refused}"
        raise error(fault, hint=hint) from refused


@contextlib.contextmanager
def replacing(path: Path, error: type[PpapError] = PpapError, hint: str = "") -> Iterator[Path]:
    """A temporary path, flushed and renamed to `path` on success, else removed. Missing parent
    folders are created. An `OSError` is converted as in `refusals`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusals(path, error, hint):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and all that it holds, if it is there."""
    with refusals(path):
        if path.exists():
            shutil.rmtree(path)


def write_json(path: Path, value: Any, hint: str = "") -> None:
    """Write a JSON value, indented, with lists of plain values and short objects on one line."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str)
    with replacing(path, hint=hint) as temporary:
        temporary.write_text(_FLAT.sub(_joined, text) + "\n", encoding="utf-8")


def _joined(match: re.Match[str]) -> str:
    line = match[1] + re.sub(r"\n\s*", " ", match[2]) + match[3]
    return line if match[1] == "[" or len(line) <= _WIDTH else match[0]


def read_json(path: Path, hint: str = "") -> Any:
    """The JSON value in a file; None if there is no such file, AssetError if it is not JSON."""
    with refusals(path, AssetError, action="read"):
        try:
            return json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise AssetError(f"{str(path)!r} is damaged: {error}", hint=hint) from error


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces, ASCII), in hexadecimal."""
    compact: Any = {"separators": (",", ":"), "allow_nan": False, "default": str}
    canonical = json.dumps(value, sort_keys=True, **compact)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, cached while its modification time and size stay the same;
    AssetError if it cannot be read.
    """
    with refusals(path, AssetError, action="read"):
        stat = path.stat()
        settled = time.time_ns() - stat.st_mtime_ns > _SETTLED
        read = _file_sha256 if settled else _file_sha256.__wrapped__
        return read(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, mtime_ns: int, size: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
