"""A safetensors file that carries the SHA-256 of itself.

The digest is that of the whole file with the digest's own 64 digits replaced by zeros. It tells a
damaged file from a sound one; it does not tell who wrote it, since anybody can compute it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ppap_framework.checkpoints import write_safetensors
from ppap_framework.errors import AssetError

__all__ = ["SEAL", "check_seal", "write_sealed"]

SEAL = "ppap.sha256"
"""The metadata key under which the digest stands."""

# Within a JSON string a quote is escaped, so this cannot be part of one.
_ENTRY = b'"' + SEAL.encode() + b'":"'
_OPEN = "0" * 64


def write_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that is either complete under its name or not there.

    Args:
        path: Replaced where it exists; its folder must exist.
        tensors: By name.
        metadata: Strings, to which the digest is added.

    Raises:
        AssetError: Where the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        try:
            write_safetensors(draft, tensors, {**metadata, SEAL: _OPEN})
            content = draft.read_bytes()
            with draft.open("r+b") as file:
                file.seek(content.index(_ENTRY) + len(_ENTRY))
                file.write(hashlib.sha256(content).hexdigest().encode())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise AssetError(f"cannot write {str(path)!r}: {error.strerror}") from error


def check_seal(path: Path) -> str:
    """Verify that a file is as it was written.

    Returns:
        The digest that it carries.

    Raises:
        AssetError: Where it is not, or carries no digest.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror}") from error
    before, entry, rest = content.partition(_ENTRY)
    stated, rest = rest[: len(_OPEN)], rest[len(_OPEN) :]
    if not entry:
        raise AssetError(
            f"{str(path)!r} carries no SHA-256 of itself", hint="it is no bundle of experts"
        )
    digest = hashlib.sha256(before + entry + _OPEN.encode() + rest).hexdigest()
    if digest.encode() != stated:
        raise AssetError(
            f"{str(path)!r} was damaged or changed after it was written: its SHA-256 is "
            f"{digest}, and it states another",
            hint="fetch it or train the experts again",
        )
    return digest
