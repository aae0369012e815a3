"""Noise that depends on the seed and the image alone, never on the batch or the device."""

from __future__ import annotations

import attrs
import torch
from torch import Generator, Tensor

from ppap_framework.runtime import generator


@attrs.frozen(eq=False)
class NoiseSource:
    """One stream of noise for each image: the initial noise first, then a draw for each step.

    Streams are drawn on the CPU, so every device sees the same numbers. Each step draws, even if
    it needs no noise, so every sampler sees the same later draws.

    Attributes:
        seed: Seed of the run.
        start: Number i of the batch's first image; its stream comes from (seed, i).
        stage: Number of the backend's stage; each stage has its own streams.
    """

    seed: int
    start: int = 0
    stage: int = 0
    _streams: dict[int, Generator] = attrs.field(factory=dict, init=False)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise, (B, C, H, W), float32, on the CPU, for the batch's B images."""
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
