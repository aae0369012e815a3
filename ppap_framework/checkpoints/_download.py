"""A file from the web, in as many attempts as it takes."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

__all__ = ["download"]

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 16  # bytes; what is lost at most where a connection breaks
_AS_IT_IS = {"Accept-Encoding": "identity"}  # or lengths would be those of what is compressed


def download(url: str, path: Path) -> Path:
    """Bring what lies at a URL into `path`.part, where an earlier attempt was cut off if one was.

    That one is taken up only where the server says that the file is still the same.

    Args:
        url: Of the file.
        path: Where it is to be in the end; its folder must exist.

    Returns:
        The path of the part, which is whole.

    Raises:
        OSError: Where the server, the network or the disk fails; `requests` has errors of its own,
            which are OSErrors.
    """
    import pooch
    import requests

    part, note = _beside(path, ".part"), _beside(path, ".part.tag")
    with requests.head(url, headers=_AS_IT_IS, allow_redirects=True, timeout=_TIMEOUT) as head:
        if head.status_code not in (405, 501):  # some servers do not know what HEAD is
            head.raise_for_status()
        total = int(head.headers.get("Content-Length", 0)) if head.ok else 0
        tag = head.headers.get("ETag") or head.headers.get("Last-Modified", "") if head.ok else ""
        ranges = head.headers.get("Accept-Ranges") == "bytes"
    stated = f"{tag} {total}"
    begun = ranges and tag and total and part.is_file() and _text(note) == stated
    done = part.stat().st_size if begun else 0
    if total - done > (free := shutil.disk_usage(path.parent).free):
        raise OSError(errno.ENOSPC, f"{total - done} bytes are to come, {free} are free", str(path))
    note.write_text(stated)
    if not begun or done < total:
        rest = {"Range": f"bytes={done}-"} if done else {}
        fetch = pooch.HTTPDownloader(
            chunk_size=_CHUNK,
            progressbar=sys.stderr.isatty(),
            timeout=_TIMEOUT,
            headers={**_AS_IT_IS, **rest},
        )
        with part.open("ab" if done else "wb") as file:
            fetch(url, file, None)
    if total and (size := part.stat().st_size) != total:
        if size > total:  # the server sent what was not asked for
            part.unlink()
        raise OSError(f"{size} of {total} bytes came; the same command goes on from there")
    note.unlink()
    return part


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
