"""Images as tensors in [-1, 1] and as 8-bit pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["from_uint8", "scaled", "to_pil", "to_uint8"]


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """round(127.5 (x + 1)) of (B, 3, H, W), clamped to bytes, (B, H, W, 3); NaN is mid-grey."""
    levels = (images.detach().float().cpu().nan_to_num(0.0) + 1.0) * 127.5
    pixels = levels.round().clamp(0.0, 255.0).permute(0, 2, 3, 1).contiguous()
    return pixels.numpy().astype(np.uint8)


def from_uint8(pixels: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) bytes as (B, 3, H, W), float32 in [-1, 1]."""
    return scaled(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def scaled(pixels: Tensor) -> Tensor:
    """Bytes, uint8 of any shape, as float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.float() / 127.5 - 1.0


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] as B RGB pictures."""
    return [Image.fromarray(pixels) for pixels in to_uint8(images)]
