"""What experts learn from: a synthetic set, or pictures with labels for the supervised baseline."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from ppap_framework.errors import AssetError

__all__ = ["Images", "LabelledImages"]


class Images(Protocol):
    """Pictures by number. `SyntheticData` and `LabelledImages` are such."""

    @property
    def manifest_hash(self) -> str:
        """A SHA-256 that changes with any picture."""

    def __len__(self) -> int: ...

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        """(3, H, W) of a stage's pictures."""

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """(B, 3, H, W), uint8."""


@final
class LabelledImages:
    """Pictures with a label each, from an NPZ file.

    Args:
        path: Of a file with `images` (N, H, W, 3), uint8, and `labels` (N, ...).

    Attributes:
        path: As given.
        labels: (N, ...), as a task loss's `energy` takes targets.

    Raises:
        AssetError: Where it is missing, or anything else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        hint = "give an NPZ file with `images` (N, H, W, 3), uint8, and `labels` (N, ...)"
        try:
            with np.load(self.path) as file:
                images, labels = file["images"], file["labels"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise AssetError(f"cannot read {str(path)!r}: {error}", hint=hint) from error
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise AssetError(
                f"the images of {str(path)!r} are {images.dtype} {images.shape}", hint=hint
            )
        if len(labels) != len(images) or len(images) < 2:
            raise AssetError(
                f"{str(path)!r} has {len(images)} images and {len(labels)} labels", hint=hint
            )
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2)
        labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
        self.labels = torch.from_numpy(labels)
        digest = hashlib.sha256(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels).data)
        self._digest = digest.hexdigest()

    @property
    def manifest_hash(self) -> str:
        """The SHA-256 of images and labels."""
        return self._digest

    def __len__(self) -> int:
        return len(self._images)

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        """(3, H, W): there is one stage."""
        _, channels, height, width = self._images.shape
        return channels, height, width

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """Pictures by their numbers: (B, 3, H, W), uint8."""
        return self._images[torch.as_tensor(list(indices))]
