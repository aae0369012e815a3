"""Wanted optical flow as users give it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppap_framework.author import AssetError, UsageError

__all__ = ["read_flow"]

_MAGIC = b"PIEH"  # 202021.25 as a little-endian float
_MOST, _UNKNOWN = 50_000_000, 1e9  # numbers in a file; flow above it is unknown
_HOW = 'give "dx,dy" in pixels, or a file .flo or .npy, (H, W, 2), of the size of the reference'


def read_flow(given: str | None, height: int, width: int) -> Tensor:
    """The flow of each pixel of a reference picture, (2, H, W), in pixels; NaN where unknown.

    A .flo file has the format of the Middlebury benchmark (Baker et al. 2011).

    Raises:
        UsageError: If it is neither two numbers nor a file, or of another size than the picture.
        AssetError: If the file is missing or damaged.
    """
    if given is None:
        return torch.zeros(2, height, width)
    path = Path(os.path.expanduser(given))  # noqa: PTH111  # pathlib's raises
    if path.suffix.lower() in (".flo", ".npy"):
        flow = _from_file(path)
        if flow.shape != (height, width, 2):
            raise UsageError(
                f"flow {given!r} has the shape {tuple(flow.shape)}, and the reference picture"
                f" {height} x {width} pixels",
                hint=_HOW,
            )
        known = (np.abs(flow) < _UNKNOWN).all(-1, keepdims=True)
        flow = np.where(known, flow, np.nan).astype(np.float32)
        return torch.from_numpy(flow).permute(2, 0, 1)
    try:
        dx, dy = (float(number) for number in given.split(","))
    except ValueError:
        raise UsageError(f"{given[:60]!r} is no optical flow", hint=_HOW) from None
    if abs(dx) >= width or abs(dy) >= height or dx != dx or dy != dy:
        raise UsageError(f"the flow {given[:60]!r} moves all points out of the picture", hint=_HOW)
    return torch.tensor([dx, dy])[:, None, None].expand(2, height, width).clone()


def _from_file(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    if not os.path.isfile(path):  # noqa: PTH113  # pathlib's raises for long names
        raise AssetError(f"flow {str(path)!r} is not there", hint=_HOW)
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.dtype.kind not in "fiu" or array.size > _MOST:
                raise ValueError(f"it holds {array.size} numbers of {array.dtype}")
            return np.asarray(array)
        with path.open("rb") as file:
            magic, width, height = struct.unpack("<4sii", file.read(12))
            if magic != _MAGIC or min(width, height) < 1 or 2 * width * height > _MOST:
                raise ValueError("it is no Middlebury .flo file")
            content = file.read(8 * width * height)
        return np.frombuffer(content, "<f4").reshape(height, width, 2)
    except Exception as error:  # damaged files make numpy and struct fail in many ways
        raise AssetError(
            f"flow {str(path)!r} cannot be read: {error}", hint="the file is damaged or another"
        ) from error
