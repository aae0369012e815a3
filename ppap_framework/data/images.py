"""What experts learn from: a synthetic set, or labelled pictures for the supervised baseline."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.errors import AssetError

_HINT = "give an NPZ file with `images` (N, H, W, 3) or (N, 3, H, W), uint8, and `labels` (N, ...)"


class Images(Protocol):
    """Pictures by number, such as `SyntheticData` and `LabelledImages`."""

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of all pictures, 64 hexadecimal digits."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the backend's stages. Every image has a picture of each: the first is the one
        that guides steer, the last the finished picture.
        """

    def __len__(self) -> int: ...

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        """(3, H, W) of a stage's pictures."""

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """(B, 3, H, W), uint8."""


@final
class LabelledImages:
    """Pictures with a label each.

    Args:
        path: An NPZ file of `images`, (N, H, W, 3) or (N, 3, H, W), uint8, and `labels`, (N, ...).

    Attributes:
        path: As given.
        labels: (N, ...), int64 or float32, as a task loss's `energy` takes targets.
        manifest_hash: SHA-256 of images and labels.
        stages: One name, for the one stage.

    Raises:
        AssetError: If the file is missing or holds anything else.
    """

    stages = ("pictures",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        images, labels = _arrays(self.path)
        if images.ndim == 4 and images.shape[3] != 3 == images.shape[1]:
            images = images.transpose(0, 2, 3, 1)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise AssetError(
                f"the images of {str(path)!r} are {images.dtype} {images.shape}", hint=_HINT
            )
        if labels.ndim == 0 or labels.dtype.kind not in "biuf":
            raise AssetError(
                f"the labels of {str(path)!r} are {labels.dtype} {labels.shape}", hint=_HINT
            )
        if len(labels) != len(images):
            raise AssetError(
                f"{str(path)!r} has {len(images)} images and {len(labels)} labels", hint=_HINT
            )
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2)
        labels = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)
        self.labels = torch.from_numpy(labels)
        found = hashlib.sha256(f"{images.shape} {labels.dtype} {labels.shape} ".encode())
        found.update(np.ascontiguousarray(images).data)
        found.update(np.ascontiguousarray(labels).data)
        self.manifest_hash = found.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        """(3, H, W)."""
        _, channels, height, width = self._images.shape
        return channels, height, width

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        """Pictures by number, (B, 3, H, W), uint8."""
        return self._images[torch.as_tensor(list(indices))]


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with path.open("rb") as opened:
            if opened.read(2) != b"PK":  # numpy would take an NPY file or a pickle as well
                raise ValueError("it is no NPZ file")
            opened.seek(0)
            with np.load(opened) as file:
                return file["images"], file["labels"]
    except OSError as error:
        reason: object = error.strerror or error
    except (zipfile.BadZipFile, zlib.error) as error:
        reason = f"it is damaged: {error}"
    except (ValueError, KeyError, EOFError, RuntimeError) as error:  # the last if it is encrypted
        reason = error.args[0] if error.args else "it ends too early"
    raise AssetError(f"cannot read {str(path)!r}: {reason}", hint=_HINT)
