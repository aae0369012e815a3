"""JSON files that are either whole or not there, and that a person can read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppap_framework.errors import AssetError, PpapError

__all__ = ["FORMAT", "digest", "read_json", "replacing", "write_json"]

FORMAT = 1
"""Of all files; it changes when their meaning does."""

_FLAT = re.compile(r"([\[{])\n\s*([^][{}]*?)\s*\n\s*([\]}])")  # a line break is in no string
_WIDTH = 100


def write_json(path: Path, value: Any) -> None:
    """Write a value, with lists on one line each, and short objects too.

    Raises:
        PpapError: Where it cannot be written.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    text = _FLAT.sub(_joined, text) + "\n"
    replacing(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _joined(match: re.Match[str]) -> str:
    line = match[1] + re.sub(r"\n\s*", " ", match[2]) + match[3]
    return line if match[1] == "[" or len(line) <= _WIDTH else match[0]


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        AssetError: Where there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(
            f"cannot read {str(path)!r}: {error.strerror or error}",
            hint="`ppap evaluate` writes it",
        ) from error
    except ValueError as error:
        raise AssetError(f"{str(path)!r} is not JSON: {error}", hint="evaluate again") from error


def digest(value: Any) -> str:
    """A name for a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def replacing(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that takes the place of `path` when it is whole.

    Raises:
        PpapError: Where the system refuses.
    """
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PpapError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
