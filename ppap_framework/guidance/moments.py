"""Adaptive moments of a guide's gradient over the steps of a trajectory.

At the n-th step at which a guide acts, let d = dE/dx of one image, without the guidance scale. With
decay rates b1 and b2, m = v = 0 at first, and everything elementwise (Adam, Kingma and Ba 2015,
arXiv 1412.6980, algorithm 1; on guidance gradients Belardi et al. 2026, arXiv 2603.16797),

    m <- b1 m + (1 - b1) d        v <- b2 v + (1 - b2) d^2
    u  = m / (1 - b1^n) / sqrt(v / (1 - b2^n))

The paper guides by u, whose elements are about 1 or less whatever the guide knows. Here d becomes
u |d| / |u|, with norms over the image: Adam's direction and the gradient's own magnitude, so that
guidance scales, curves and `normalize` keep their meaning.
"""

from __future__ import annotations

from typing import final

import attrs
import torch
from torch import Tensor


@final
@attrs.define(eq=False)
class Moments:
    """The moments of one guide's gradients in one trajectory; `betas` are b1 and b2, in [0, 1)."""

    betas: tuple[float, float]
    _m: Tensor | float = 0.0
    _v: Tensor | float = 0.0
    _n: int = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        """u for the next gradient d, finite; both (B, C, H, W)."""
        (b1, b2), self._n = self.betas, self._n + 1
        self._m = b1 * self._m + (1.0 - b1) * gradient
        self._v = b2 * self._v + (1.0 - b2) * gradient.square()
        mean, square = self._m / (1.0 - b1**self._n), self._v / (1.0 - b2**self._n)
        return mean / (square.sqrt() + torch.finfo(square.dtype).tiny)
