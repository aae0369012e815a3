"""Images as they are kept, in bytes, and as networks see them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.noise import NoiseLevel

__all__ = ["clean_levels", "to_images", "to_pixels"]


def to_images(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(N, H, W, 3) to (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """(N, 3, H, W), nominally in [-1, 1], to (N, H, W, 3) on the CPU; what is no number is grey."""
    levels = ((images.nan_to_num(0.0).clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def clean_levels(number: int) -> NoiseLevel:
    """The noise levels of N finished images."""
    return NoiseLevel(torch.full((number,), torch.inf, dtype=torch.float64))
