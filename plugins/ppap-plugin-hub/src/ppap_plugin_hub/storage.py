"""Folders that fsspec reads and writes: S3, Google Cloud Storage, memory, a path, and others."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError, one_line
from ppap_framework.files import expanded
from ppap_plugin_hub.places import Listed, Place, network_is_off, offline

SUMS = ".sha256"
"""Suffix of the file beside another that holds its SHA-256, as `sha256sum` writes it."""

SCHEME = re.compile(r"([A-Za-z][\w+.-]*)(::|://)")
"""How a URL begins; fsspec chains file systems by two colons."""

_HERE = ("file", "local", "memory")  # schemes that need no network
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "sftp": "paramiko"}
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs")  # there, to make a folder is to make a bucket
_CHUNK = 1 << 20


class FilePlace(Place):
    """A folder that fsspec reads and writes: s3://bucket/folder, memory://folder, or a path."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        scheme = SCHEME.match(url)
        protocol = scheme[1].lower() if scheme else "file"
        if protocol not in _HERE and network_is_off():
            raise offline(url)
        with self._explained("reach"):
            self._fs, root = url_to_fs(url if scheme else str(expanded(url).absolute()))
        self._root = root.rstrip("/")
        self._has_buckets = protocol in _BUCKETS

    def listing(self) -> dict[str, Listed]:
        with self._explained("list"):
            self._fs.invalidate_cache()
            found = (
                self._fs.find(self._root, maxdepth=1, withdirs=False, detail=True)
                if self._there()
                else {}
            )
        sizes = {
            path[len(self._root) :].lstrip("/"): info.get("size") for path, info in found.items()
        }
        sums = {name: self._stated(name) for name in sizes if f"{name}{SUMS}" in sizes}
        return {name: Listed(size, sums.get(name)) for name, size in sizes.items()}

    def put(self, files: Mapping[str, Path], message: str) -> None:
        with self._explained("write to", PpapError):
            if not self._has_buckets:
                self._fs.makedirs(self._root, exist_ok=True)
            for name, path in files.items():
                target = f"{self._root}/{name}"
                # Within a transaction, a file gets its name when it is complete.
                with (
                    self._fs.transaction,
                    path.open("rb") as ours,
                    self._fs.open(target, "wb") as theirs,
                ):
                    shutil.copyfileobj(ours, theirs, _CHUNK)
            self._fs.invalidate_cache()

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._explained("write to", PpapError):
            self._fs.rm_file(f"{self._root}/{name}")

    def read(self, name: str) -> bytes:
        with self._explained("read"):
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def _download(self, name: str, path: Path) -> None:
        source = f"{self._root}/{name}"
        with (
            self._explained("read"),
            self._fs.open(source, "rb") as theirs,
            path.open("wb") as ours,
        ):
            shutil.copyfileobj(theirs, ours, _CHUNK)

    def _there(self) -> bool:
        return not self._root or bool(self._fs.exists(self._root))

    def _stated(self, name: str) -> str:
        content = self.read(f"{name}{SUMS}")
        if match := re.match(rb"\s*([0-9a-f]{64})(\s|$)", content):
            return match[1].decode()
        fault = f"{name + SUMS!r} of {self.url} holds no SHA-256"
        raise AssetError(fault, hint="push the file again with --overwrite")

    @contextlib.contextmanager
    def _explained(self, action: str, error: type[PpapError] = AssetError) -> Iterator[None]:
        try:
            yield
        except PpapError:
            raise
        except FileNotFoundError as missing:
            fault = f"cannot {action} {self.url}: it is not there"
            raise error(fault, hint="check the address") from missing
        except ImportError as missing:
            protocol = self.url.partition(":")[0]
            hint = f"pip install {_PACKAGES.get(protocol, f'the package that reads {protocol}://')}"
            raise PluginError(f"cannot {action} {self.url}: {missing}", hint=hint) from missing
        except Exception as refused:  # of any file system and its network
            kind = type(refused).__name__
            if isinstance(refused, ValueError) and "rotocol not known" in str(refused):
                fault = f"{self.url} has an address that nothing here reads"
                raise UsageError(fault, hint="give s3://, gs://, hf:// or file://") from refused
            reason, hint = one_line(refused), "--debug shows the traceback"
            if isinstance(refused, PermissionError) or "Credential" in kind:
                reason = f"permission denied: {reason}"
                hint = "check the credentials of this file system, and what they may do"
            elif isinstance(refused, OSError) and refused.strerror:
                reason, hint = refused.strerror, "check the address"
            raise error(f"cannot {action} {self.url}: {reason}", hint=hint) from refused
