"""Images, answers, and noise by seed, phase and iteration alone, so training resumes exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import attrs
import numpy as np
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend, GuidanceModel, Stage
from ppap_framework.data import Images, LabelledImages
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import scaled
from ppap_framework.predictions import each_tensor, joined
from ppap_framework.runtime import frozen

Shape: TypeAlias = tuple[int, int, int]

_TRAINING, _ORDER, _VALIDATION = 0, 1, 2


@attrs.frozen(kw_only=True, eq=False)
class TrainingSet:
    """`count` images of a `shape` (3, H, W) and answers, in memory: functions of indices (B,) to
    clean images of the guided stage, (B, 3, H, W) in [-1, 1], or latents, on the network's device,
    and to the teacher's answers to the images or, if `supervised`, labels.
    """

    images: Callable[[Tensor], Tensor]
    answers: Callable[[Tensor], Any]
    supervised: bool = False
    count: int
    shape: Shape

    @classmethod
    def of(
        cls, data: Images, model: GuidanceModel, batch: int, device: torch.device, stage: Stage
    ) -> TrainingSet:
        """Images of a stage with their labels, or else with the model's answers to those of the
        last stage. The model is on the device, in evaluation mode.
        """
        noised, last = first_and_last(data, len(data))
        ready: Callable[[Tensor], Tensor] = scaled
        if stage.latent_shape:
            with frozen([stage.network], device), torch.no_grad():
                several = (scaled(x.to(device)) for x in torch.split(noised, batch))
                noised = torch.cat([stage.encode(x).cpu() for x in several])
            ready = Tensor.float
        answers: Any = data.labels.to(device) if isinstance(data, LabelledImages) else None
        if answers is None:
            with torch.no_grad():
                parts = [scaled(part.to(device)) for part in torch.split(last, batch)]
                answers = joined([model(x0, NoiseLevel.clean(len(x0))) for x0 in parts])
        return cls(
            images=lambda rows: ready(noised[rows].to(device)),
            answers=lambda rows: each_tensor(lambda all_: all_[rows.to(all_.device)], answers),
            supervised=isinstance(data, LabelledImages),
            count=len(data),
            shape=stage.shape,
        )


def first_and_last(data: Images, count: int) -> tuple[Tensor, Tensor]:
    """The first images of the guided stage and of the last one, (N, 3, H, W) each, uint8."""
    first = data.images(range(count), 0)
    return first, first if len(data.stages) == 1 else data.images(range(count), -1)


def predicted(
    backend: DiffusionBackend, x_t: Tensor, t: Tensor, prompts: Sequence[str] | None = None
) -> Tensor:
    """The predicted clean images of x_t, (B, 3, H, W), not clipped."""
    stage = backend.stages[0]
    with frozen([stage.network], x_t.device), torch.no_grad():
        return stage.decode(stage.denoise(x_t, t, backend.encode(prompts, len(x_t))).x0)


class Batch(NamedTuple):
    """A batch of noisy images."""

    images: Tensor  # (B,), int64, indices
    timesteps: Tensor  # (B,), int64, base timesteps
    noise: Tensor  # (B, 3, H, W), standard normal

    def part(self, rows: slice) -> Batch:
        """Some of the images."""
        return Batch(*(field[rows] for field in self))


def training_batch(
    key: tuple[int, int], step: int, size: int, count: int, timesteps: range, shape: Shape
) -> Batch:
    """The batch of size B = `size` at iteration `step` of a phase, from 0, of `count` images.

    `key` is the seed of the training and the index of the phase. Every epoch shuffles the images
    anew. Timesteps are stratified, one from each of B equal parts of the range: same expectation as
    independent ones, smaller variance.
    """
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: torch.randperm(count, generator=_generator(key, _ORDER, epoch))
        for epoch in {i // count for i in places}
    }
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


def _generator(key: tuple[int, int], use: int, step: int) -> torch.Generator:
    seed, phase = key  # numpy rejects negative seeds
    mixed = np.random.SeedSequence([seed % 2**64, use, phase, step])
    return torch.Generator().manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
