"""Batches as pure functions of seed, phase and iteration, so training resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, final

import attrs
import numpy as np
import torch
from torch import Tensor

Shape: TypeAlias = tuple[int, int, int]

_TRAINING, _ORDER, _VALIDATION = 0, 1, 2


@final
@attrs.frozen(eq=False)
class Batch:
    """A batch of noisy images.

    Attributes:
        images: (B,), int64, image indices.
        timesteps: (B,), int64, base timesteps.
        noise: (B, 3, H, W), standard normal.
    """

    images: Tensor
    timesteps: Tensor
    noise: Tensor

    def split(self, size: int) -> Iterator[Batch]:
        """The same images in batches of at most `size`."""
        fields = self.images, self.timesteps, self.noise
        return (
            Batch(*part)
            for part in zip(*(torch.split(field, size) for field in fields), strict=True)
        )


def training_batch(
    key: tuple[int, int], step: int, size: int, count: int, timesteps: range, shape: Shape
) -> Batch:
    """The batch of size B = `size` at iteration `step` of a phase, from 0.

    Every epoch shuffles the images anew. Timesteps are stratified, one from each of B equal parts
    of the range: same expectation as independent ones, smaller variance.

    Args:
        key: Seed of the training, and index of the phase.
        count: Number of images to choose from.
        shape: (3, H, W).
    """
    places = range(step * size, (step + 1) * size)
    orders = {epoch: _order(key, epoch, count) for epoch in {i // count for i in places}}
    images = torch.stack([orders[i // count][i % count] for i in places])
    generator = _generator(key, _TRAINING, step)
    # In float32, the end of a part may round to the beginning of the next one.
    spread = torch.arange(size) + torch.rand(size, generator=generator).double()
    return Batch(images, _at(timesteps, spread), torch.randn(size, *shape, generator=generator))


def validation_batch(key: tuple[int, int], count: int, timesteps: range, shape: Shape) -> Batch:
    """Each of `count` held-out images once, at timesteps spread over the range."""
    generator = _generator(key, _VALIDATION, 0)
    spread = torch.randperm(count, generator=generator).double() + 0.5
    noise = torch.randn(count, *shape, generator=generator)
    return Batch(torch.arange(count), _at(timesteps, spread), noise)


def _at(timesteps: range, spread: Tensor) -> Tensor:
    """The timesteps at positions (B,), float64, after the range is stretched to [0, B)."""
    return timesteps.start + (spread * len(timesteps) / len(spread)).long()


def _order(key: tuple[int, int], epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=_generator(key, _ORDER, epoch))


def _generator(key: tuple[int, int], use: int, step: int) -> torch.Generator:
    seed, phase = key  # numpy rejects negative seeds
    mixed = np.random.SeedSequence([seed % 2**64, use, phase, step])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
