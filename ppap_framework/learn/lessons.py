"""Which images, how noisy, at which iteration: pure functions of seed, phase and iteration.

So a training that was interrupted goes on exactly, whatever it had drawn before.
"""

from __future__ import annotations

from typing import final

import attrs
import numpy as np
import torch
from torch import Tensor

__all__ = ["Lesson", "examination", "lesson"]

_LESSON, _ORDER, _EXAMINATION = 0, 1, 2


@final
@attrs.frozen(eq=False)
class Lesson:
    """A batch to learn from.

    Attributes:
        images: (B,), int64: their numbers among those to choose from.
        timesteps: (B,), int64: base timesteps.
        noise: (B, 3, H, W), standard normal.
    """

    images: Tensor
    timesteps: Tensor
    noise: Tensor


def lesson(
    seed: int,
    phase: int,
    step: int,
    *,
    batch: int,
    count: int,
    timesteps: range,
    shape: tuple[int, int, int],
) -> Lesson:
    """The batch of an iteration.

    Images come in a new random order each time that all were seen. Timesteps are one from each of B
    equal parts of the range: their expectation is that of independent ones, their variance less.

    Args:
        seed: Of the training.
        phase: Its number.
        step: The iteration of that phase, from 0.
        batch: B.
        count: How many images there are.
        timesteps: To draw from.
        shape: (3, H, W).
    """
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: _order(seed, phase, epoch, count) for epoch in {i // count for i in places}}
    images = torch.stack([orders[i // count][i % count] for i in places])
    generator = _generator(seed, _LESSON, phase, step)
    # As float64: as float32 a place at the end of its part may round to the next one's beginning.
    spread = torch.arange(batch) + torch.rand(batch, generator=generator).double()
    return Lesson(images, _at(timesteps, spread), torch.randn(batch, *shape, generator=generator))


def examination(
    seed: int, phase: int, *, count: int, timesteps: range, shape: tuple[int, int, int]
) -> Lesson:
    """Every one of `count` held-out images once, at timesteps spread over the range.

    The arguments are as for `lesson`.
    """
    generator = _generator(seed, _EXAMINATION, phase, 0)
    spread = torch.randperm(count, generator=generator).double() + 0.5
    noise = torch.randn(count, *shape, generator=generator)
    return Lesson(torch.arange(count), _at(timesteps, spread), noise)


def _at(timesteps: range, spread: Tensor) -> Tensor:
    """The timesteps at B places, (B,), float64 in [0, B), when the range is stretched to [0, B)."""
    return timesteps.start + (spread * len(timesteps) / len(spread)).long()


def _order(seed: int, phase: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=_generator(seed, _ORDER, phase, epoch))


def _generator(*words: int) -> torch.Generator:
    # Negative seeds are allowed elsewhere; numpy wants whole numbers from 0.
    mixed = np.random.SeedSequence([word % 2**64 for word in words])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
