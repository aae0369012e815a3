"""Noise that depends on the seed and the image alone, never on the batch or the device."""

from __future__ import annotations

import attrs
import torch
from torch import Generator, Tensor

from ppap_framework.runtime import generator


@attrs.frozen(eq=False)
class NoiseSource:
    """One stream of noise for each image: the initial noise first, then a draw for each step.

    Streams are drawn on the CPU, so that every device sees the same numbers. A step draws even
    where it has no use for noise; what follows is then the same for every sampler.

    Attributes:
        seed: Seed of the run.
        start: The number of the batch's first image; image i has its stream from (seed, i).
        stage: Number of the backend's stage; each has streams of its own, so that one does not
            depend on how the other is sampled.
    """

    seed: int
    start: int = 0
    stage: int = 0
    _streams: dict[int, Generator] = attrs.field(factory=dict, init=False)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise for images `start` to `start` + B - 1.

        Args:
            shape: (B, C, H, W).

        Returns:
            (B, C, H, W), float32, on the CPU.
        """
        batch, *image = shape
        return torch.stack(
            [
                torch.randn(image, generator=self._stream(row), dtype=torch.float32, device="cpu")
                for row in range(self.start, self.start + batch)
            ]
        )

    def _stream(self, image: int) -> Generator:
        if image not in self._streams:
            stage = (self.stage,) if self.stage else ()
            self._streams[image] = generator(self.seed, image, *stage)
        return self._streams[image]
