"""Protocol of training images, and labelled ones for the supervised baseline."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.errors import AssetError
from ppap_framework.files import expanded, refusals

_HINT = "give an NPZ file with `images` (N, H, W, 3) or (N, 3, H, W), uint8, and `labels` (N, ...)"


class Images(Protocol):
    """Training images, such as `SyntheticData` and `LabelledImages`."""

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of all images, 64 hexadecimal digits."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the backend's stages, one picture each: first the guided, last the finished."""

    def __len__(self) -> int: ...

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        """(3, H, W) of a stage's pictures."""

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """A stage's pictures for B indices, (B, 3, H, W), uint8."""


class LabelledImages:
    """Images with a label each, of one stage; AssetError if the file holds anything else.

    It is an NPZ file of `images`, (N, H, W, 3) or (N, 3, H, W), uint8, and `labels`, (N, ...),
    which become int64 or float32, the targets of a task loss's `energy`.
    """

    stages = ("pictures",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expanded(path)
        images, labels = _arrays(self.path)
        if images.ndim == 4 and images.shape[3] != 3 == images.shape[1]:
            images = images.transpose(0, 2, 3, 1)
        readable = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
        numbers = labels.ndim > 0 and labels.dtype.kind in "biuf"
        if not readable or not numbers or len(labels) != len(images):
            both = [f"of {array.dtype} {array.shape}" for array in (images, labels)]
            fault = f"{str(path)!r} holds images {both[0]} and labels {both[1]}"
            raise AssetError(fault, hint=_HINT)
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2)
        labels = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)
        self.labels = torch.from_numpy(labels)
        found = hashlib.sha256(f"{images.shape} {labels.dtype} {labels.shape} ".encode())
        for array in (images, labels):
            found.update(np.ascontiguousarray(array).data)
        self.manifest_hash = found.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        _, channels, height, width = self._images.shape
        return channels, height, width

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        return self._images[torch.as_tensor(list(indices))]


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with refusals(path, AssetError, _HINT, "read"), path.open("rb") as opened:
            if opened.read(2) != b"PK":  # numpy also reads NPY files and pickles
                raise ValueError("it is no NPZ file")
            opened.seek(0)
            with np.load(opened) as file:
                return file["images"], file["labels"]
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, RuntimeError) as error:
        reason = error.args[0] if error.args else "it ends too early"  # RuntimeError: encrypted
        raise AssetError(f"cannot read {str(path)!r}: {reason}", hint=_HINT) from error
