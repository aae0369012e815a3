"""Files that are either whole or not there, whatever ends the process or the machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ppap_framework.errors import AssetError, PpapError, UsageError

__all__ = ["digest", "file_sha256", "locked", "read_json", "refusals", "replacing", "write_json"]

_ANEW = "`ppap synthesize --overwrite` draws the set anew"


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """A context in which the system's refusals are errors that name the path.

    Raises:
        PpapError: For an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise PpapError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            hint="what is finished is kept; mend it, and the same command goes on",
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is on the disk, or else goes away.

    Raises:
        PpapError: Where the system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusals(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, whole or not at all.

    Raises:
        PpapError: Where the system refuses.
    """
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path, *, hint: str = _ANEW) -> Any:
    """Read what `write_json` wrote; None where there is no such file.

    Args:
        path: Of the file.
        hint: What to do where it is damaged.

    Raises:
        AssetError: Where it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise AssetError(f"{str(path)!r} is damaged: {error}", hint=hint) from error


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value in its canonical form: sorted keys, no spaces, ASCII."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        OSError: Where it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A lock on an empty file, which stays; the system lets go of it when the process ends.

    Raises:
        UsageError: Where another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart
        yield
        return
    with refusals(path):
        file = path.open("ab")
    with file:
        with refusals(path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is writing to {str(path.parent)!r}",
                    hint="wait for it, or give another folder",
                ) from error
        yield
