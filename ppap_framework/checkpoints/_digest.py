"""SHA-256 of files, computed once for each state of a file."""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from pathlib import Path

from ppap_framework.errors import AssetError

_BLOCK = 1 << 20
_SETTLED = 2e9  # ns; within a file system's clock tick, a file can change and keep its time


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits.

    It is remembered within the process for as long as the file's modification time and size stay.

    Raises:
        AssetError: Where the file cannot be read.
    """
    try:
        stat = path.stat()
        settled = time.time_ns() - stat.st_mtime_ns > _SETTLED
        digest = _sha256 if settled else _sha256.__wrapped__
        return digest(path.resolve(), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror}") from error


@lru_cache(maxsize=256)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()
