"""A picture of which some pixels are kept while the others are drawn anew."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Known"]


class Known(NamedTuple):
    """The picture x0, (1, 3, H, W) in [-1, 1], or its latent, (1, C, h, w); and a mask of the same
    height and width, (1, 1, H, W): 1 where pixels are `unknown`, 0 where they are kept.
    """

    x0: Tensor
    unknown: Tensor

    def sized(self, height: int, width: int) -> Known:
        """Both resized and cropped to the centre; a pixel is unknown if any part of it is."""
        (x0, unknown), before = self, self.x0.shape[-2:]
        side = max(height / before[0], width / before[1])
        covering = [max(1, round(side * extent)) for extent in before]
        if covering != [*before]:
            x0 = F.interpolate(x0, covering, mode="bicubic", antialias=True).clamp(-1.0, 1.0)
            unknown = F.adaptive_max_pool2d(unknown, covering)
        top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
        across = (..., slice(top, top + height), slice(left, left + width))
        return Known(x0[across], unknown[across])

    def kept(self, images: Tensor) -> Tensor:
        """Images, (B, C, H, W), with the known pixels of the picture."""
        return torch.where(self.unknown > 0, images, self.x0)
