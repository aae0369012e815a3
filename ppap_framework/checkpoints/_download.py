from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 16  # bytes; the most that is lost if a connection breaks
_PLAIN = {"Accept-Encoding": "identity"}  # lengths are otherwise those of compressed data


def download(url: str, path: Path) -> Path:
    """Download a file to `path`.part and return that path; the folder must exist.

    An earlier part is continued only if the server says that the file is still the same.

    Raises:
        OSError: If the server, the network or the disk fails, including errors of `requests`.
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
        fetch = pooch.HTTPDownloader(
            chunk_size=_CHUNK,
            progressbar=sys.stderr.isatty(),
            timeout=_TIMEOUT,
            headers={**_PLAIN, "Range": f"bytes={done}-"} if done else _PLAIN,
        )
        with part.open("ab" if done else "wb") as file:
            fetch(url, file, None)
    if total and (size := part.stat().st_size) != total:
        if size > total:  # the server sent something else
            part.unlink()
        raise OSError(f"{size} of {total} bytes came; the same command continues from there")
    note.unlink()
    return part
