"""Labelled pictures that are there already: what generated images are measured against, and scenes
that they are aimed at.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.errors import AssetError
from ppap_framework.targets import decode_target

__all__ = ["Pictures", "Scenes", "read_pictures", "read_scenes"]

_KEYS = ("images", "labels", "class_names")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@attrs.frozen(eq=False)
class Pictures:
    """Pictures and their classes.

    Attributes:
        images: (N, H, W, 3), uint8.
        labels: (N,), int64, in [0, K).
        names: Of the K classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Of pixels and labels, whatever they were read from."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


@attrs.frozen(eq=False)
class Scenes:
    """Pictures with what is there to see in them.

    Attributes:
        pictures: S of them, with their classes.
        truths: By name, (S, ...): of each picture.
    """

    pictures: Pictures
    truths: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def sha256(self) -> str:
        """Of everything."""
        whole = hashlib.sha256(self.pictures.sha256.encode())
        for name, truth in sorted(self.truths.items()):
            whole.update(f"{name} {truth.dtype} {truth.shape} ".encode() + truth.tobytes())
        return whole.hexdigest()

    def part(self, start: int, stop: int) -> Scenes:
        """Scenes `start` to `stop` - 1."""
        images, labels = self.pictures.images[start:stop], self.pictures.labels[start:stop]
        return Scenes(
            Pictures(images, labels, self.pictures.names),
            {name: truth[start:stop] for name, truth in self.truths.items()},
        )


def read_pictures(path: Path) -> Pictures:
    """Read labelled pictures.

    Args:
        path: An .npz file with `images`, (N, 3, H, W) or (N, H, W, 3) of uint8, `labels`, (N,), and
            maybe `class_names`, (K,); classes without names are called by their numbers. Or a
            folder with a folder of pictures for each class.

    Raises:
        AssetError: Where it is neither.
    """
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise AssetError(
            f"there are no pictures {str(path)!r}",
            hint="name an .npz file, or a folder with a folder of pictures for each class",
        )
    return _from_arrays(path, _arrays(path, _KEYS))


def read_scenes(path: Path, truths: Collection[str]) -> Scenes:
    """Read scenes.

    Args:
        path: An .npz file as for `read_pictures`, with arrays of what is there.
        truths: The names of these, each (N, ...) of numbers.

    Raises:
        AssetError: Where it is no such file.
    """
    pictures = read_pictures(path)
    hint = "it holds an array for each judge's `truth`, with an entry for each picture"
    if path.is_dir():
        raise AssetError(f"{str(path)!r} is a folder, which holds no scenes", hint=hint)
    found = _arrays(path, truths)
    if missing := sorted(set(truths) - set(found)):
        raise AssetError(f"{str(path)!r} has no {', '.join(missing)}", hint=hint)
    for name, truth in found.items():
        if truth.dtype.kind not in "uif" or len(truth.shape) < 2 or len(truth) != len(pictures):
            raise AssetError(
                f"{str(path)!r} has {len(pictures)} pictures and {name} of {truth.dtype} and "
                f"shape {truth.shape}",
                hint=hint,
            )
    return Scenes(pictures, found)


def _arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Those of the arrays that a file holds."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise AssetError(
            f"{str(path)!r} is no .npz file: {error}", hint="write it with numpy.savez"
        ) from error


def _from_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> Pictures:
    def wrong(what: str) -> AssetError:
        return AssetError(
            f"{str(path)!r} {what}", hint="it holds images, labels and maybe class_names"
        )

    if missing := {"images", "labels"} - set(arrays):
        raise wrong(f"has no {' and no '.join(sorted(missing))}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise wrong(f"has images of {images.dtype} and shape {images.shape}")
    if images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise wrong(f"has labels of {labels.dtype} and shape {labels.shape}")
    if not len(labels):
        raise wrong("is empty")
    number = int(labels.max()) + 1
    names = arrays.get("class_names", np.arange(number).astype(str))
    if names.ndim != 1 or len(names) < number or labels.min() < 0:
        raise wrong(f"has labels from {labels.min()} to {number - 1} for {names.size} names")
    return Pictures(
        np.ascontiguousarray(images), labels.astype(np.int64), tuple(str(name) for name in names)
    )


def _from_folder(path: Path) -> Pictures:
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _SUFFIXES:
                picture = decode_target(file).image
                assert picture is not None
                images.append(np.asarray(picture.convert("RGB")))
                labels.append(label)
    if not images:
        raise AssetError(
            f"folder {str(path)!r} holds no pictures", hint="it needs a folder for each class"
        )
    if len(sizes := {image.shape for image in images}) > 1:
        raise AssetError(
            f"the pictures in {str(path)!r} have {len(sizes)} different sizes", hint="use one size"
        )
    return Pictures(
        np.stack(images), np.array(labels, np.int64), tuple(folder.name for folder in classes)
    )
