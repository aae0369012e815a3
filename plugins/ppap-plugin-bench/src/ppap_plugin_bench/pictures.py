"""Labelled pictures: the reference, existing rows, and target scenes."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.errors import AssetError
from ppap_framework.targets import decode_target

_KEYS = ("images", "labels", "class_names")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@attrs.frozen(eq=False)
class Pictures:
    """Pictures and their classes; scenes also hold ground truth.

    Attributes:
        images: (N, H, W, 3), uint8.
        labels: (N,), int64, in [0, K).
        names: Names of the K classes.
        truths: Ground truth of each picture, (N, ...), by name.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    truths: Mapping[str, NDArray[Any]] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Hash of pixels and labels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

    @property
    def scenes_sha256(self) -> str:
        """Hash of pixels, labels and truths."""
        whole = hashlib.sha256(self.sha256.encode())
        for name, truth in sorted(self.truths.items()):
            whole.update(f"{name} {truth.dtype} {truth.shape} ".encode() + truth.tobytes())
        return whole.hexdigest()

    def part(self, start: int, stop: int) -> Pictures:
        """Pictures `start` to `stop` - 1."""
        cut = slice(start, stop)
        truths = {name: truth[cut] for name, truth in self.truths.items()}
        return attrs.evolve(self, images=self.images[cut], labels=self.labels[cut], truths=truths)


def sized(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Images, (N, H, W, 3), at the size of others that they are compared with; each pixel is the
    mean of those that it covers.
    """
    if images.shape[1:3] == (height, width):
        return images
    pictures = (Image.fromarray(image) for image in images)
    return np.stack(
        [np.asarray(one.resize((width, height), Image.Resampling.BOX)) for one in pictures]
    )


def read_pictures(path: Path, truths: Collection[str] | None = None) -> Pictures:
    """Read labelled pictures.

    Args:
        path: An .npz file with `images`, (N, 3, H, W) or (N, H, W, 3) of uint8, `labels`, (N,), and
            optionally `class_names`, (K,), by default the classes' numbers; or a folder with a
            folder of pictures for each class.
        truths: Names of ground-truth arrays in the file, each (N, ...), for scenes; None for other
            pictures.

    Raises:
        AssetError: If the path is neither, or an array is missing.
    """
    hint = "it holds an array for each judge's `truth`, with an entry for each picture"
    if path.is_dir():
        if truths is not None:
            raise AssetError(f"{str(path)!r} is a folder, which holds no scenes", hint=hint)
        return _from_folder(path)
    if not path.is_file():
        raise AssetError(
            f"there are no pictures {str(path)!r}",
            hint="name an .npz file, or a folder with a folder of pictures for each class",
        )
    names = sorted(truths or ())
    arrays = _arrays(path, [*_KEYS, *names])
    pictures = _from_arrays(path, arrays)
    if missing := [name for name in names if name not in arrays]:
        raise AssetError(f"{str(path)!r} has no {', '.join(missing)}", hint=hint)
    found = {name: arrays[name] for name in names}
    for name, truth in found.items():
        if truth.dtype.kind not in "uif" or len(truth.shape) < 2 or len(truth) != len(pictures):
            raise AssetError(
                f"{str(path)!r} has {len(pictures)} pictures and {name} of {truth.dtype} and "
                f"shape {truth.shape}",
                hint=hint,
            )
    return attrs.evolve(pictures, truths=found)


def _arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays that the file has."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise AssetError(
            f"{str(path)!r} is no .npz file: {error}", hint="write it with numpy.savez"
        ) from error


def _from_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Pictures:
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
    files = [
        (label, file)
        for label, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise AssetError(
            f"folder {str(path)!r} holds no pictures", hint="it needs a folder for each class"
        )
    pictures = [decode_target(file).image for _, file in files]
    images = [np.asarray(picture.convert("RGB")) for picture in pictures if picture]
    if len(sizes := {image.shape for image in images}) > 1:
        raise AssetError(
            f"the pictures in {str(path)!r} have {len(sizes)} different sizes", hint="use one size"
        )
    return Pictures(
        np.stack(images), np.array([k for k, _ in files], np.int64), tuple(c.name for c in classes)
    )
