"""Images in memory, and the answers that experts learn to give to their noisy versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import attrs
import torch
from torch import Tensor

from ppap_framework.components import GuidanceModel
from ppap_framework.data import Images, LabelledImages
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import scaled
from ppap_framework.predictions import each_tensor, joined

__all__ = ["TrainingSet", "teacher_answers"]


@final
@attrs.frozen(kw_only=True, eq=False)
class TrainingSet:
    """Images and answers by number.

    Attributes:
        images: Function of B numbers (B,) to the images that are noised, (B, 3, H, W) in [-1, 1],
            on the network's device.
        answers: Function of B numbers to the teacher's answers, or to labels.
        supervised: Whether the answers are labels.
        count: Number of images.
        shape: (3, H, W).
    """

    images: Callable[[Tensor], Tensor]
    answers: Callable[[Tensor], Any]
    supervised: bool = False
    count: int
    shape: tuple[int, int, int]

    @classmethod
    def of(
        cls, data: Images, model: GuidanceModel, batch: int, device: torch.device
    ) -> TrainingSet:
        """The images of the guided stage, with labels if there are any, and otherwise with the
        model's answers to the last stage's.

        Args:
            data: The images.
            model: The untouched network, in evaluation mode, on the device.
            batch: Batch size of the teacher.
            device: Device of images and labels.
        """
        noised = data.images(range(len(data)), 0)
        last = noised if len(data.stages) == 1 else data.images(range(len(data)), -1)
        answers: Callable[[Tensor], Any]
        if isinstance(data, LabelledImages):
            answers = data.labels.to(device).__getitem__
        else:
            answers = teacher_answers(
                model, lambda rows: scaled(last[rows].to(device)), len(data), batch
            )
        return cls(
            images=lambda rows: scaled(noised[rows].to(device)),
            answers=answers,
            supervised=isinstance(data, LabelledImages),
            count=len(data),
            shape=data.image_shape(0),
        )


@torch.no_grad()
def teacher_answers(
    model: GuidanceModel, images: Callable[[Tensor], Tensor], count: int, batch: int
) -> Callable[[Tensor], Any]:
    """A function of B image numbers to the model's answers, which are computed here, once.

    Args:
        model: The untouched network, in evaluation mode.
        images: Function of B numbers to clean images, (B, 3, H, W) in [-1, 1].
        count: Number of images.
        batch: Batch size.
    """
    parts = []
    for first in range(0, count, batch):
        seen = images(torch.arange(first, min(first + batch, count)))
        parts.append(model(seen, NoiseLevel.clean(len(seen))))
    answers = joined(parts)
    return lambda rows: each_tensor(lambda tensor: tensor[rows.to(tensor.device)], answers)
