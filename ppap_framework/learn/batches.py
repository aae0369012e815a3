"""Which images, with how much noise, at which iteration: pure functions of seed, phase and
iteration, so that an interrupted training continues exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import attrs
import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch", "training_batch", "validation_batch"]

_TRAINING, _ORDER, _VALIDATION = 0, 1, 2


@final
@attrs.frozen(eq=False)
class Batch:
    """A batch of noisy images.

    Attributes:
        images: (B,), int64, numbers of the images.
        timesteps: (B,), int64, base timesteps.
        noise: (B, 3, H, W), standard normal.
    """

    images: Tensor
    timesteps: Tensor
    noise: Tensor

    def split(self, size: int) -> Iterator[Batch]:
        """The same images in batches of at most this size."""
        fields = self.images, self.timesteps, self.noise
        return (
            Batch(*part)
            for part in zip(*(torch.split(field, size) for field in fields), strict=True)
        )


def training_batch(
    seed: int,
    phase: int,
    step: int,
    *,
    batch: int,
    count: int,
    timesteps: range,
    shape: tuple[int, int, int],
) -> Batch:
    """The batch of an iteration.

    Every epoch has a new random order of the images. Timesteps are stratified, one from each of B
    equal parts of the range: the expectation is that of independent ones, the variance is smaller.

    Args:
        seed: Seed of the training.
        phase: Number of the phase.
        step: Iteration of the phase, from 0.
        batch: B.
        count: Number of images to choose from.
        timesteps: Range of base timesteps.
        shape: (3, H, W).
    """
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: _order(seed, phase, epoch, count) for epoch in {i // count for i in places}}
    images = torch.stack([orders[i // count][i % count] for i in places])
    generator = _generator(seed, _TRAINING, phase, step)
    # In float32 a place at the end of its part may round to the beginning of the next one.
    spread = torch.arange(batch) + torch.rand(batch, generator=generator).double()
    return Batch(images, _at(timesteps, spread), torch.randn(batch, *shape, generator=generator))


def validation_batch(
    seed: int, phase: int, *, count: int, timesteps: range, shape: tuple[int, int, int]
) -> Batch:
    """Each of `count` held-out images once, at timesteps spread over the range. The arguments are
    those of `training_batch`.
    """
    generator = _generator(seed, _VALIDATION, phase, 0)
    spread = torch.randperm(count, generator=generator).double() + 0.5
    noise = torch.randn(count, *shape, generator=generator)
    return Batch(torch.arange(count), _at(timesteps, spread), noise)


def _at(timesteps: range, spread: Tensor) -> Tensor:
    """The timesteps at B places, (B,), float64 in [0, B), of the range stretched to [0, B)."""
    return timesteps.start + (spread * len(timesteps) / len(spread)).long()


def _order(seed: int, phase: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=_generator(seed, _ORDER, phase, epoch))


def _generator(*words: int) -> torch.Generator:
    # Seeds may be negative; numpy wants whole numbers from 0.
    mixed = np.random.SeedSequence([word % 2**64 for word in words])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
