"""Training images in memory, and the answers that experts learn."""

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


@final
@attrs.frozen(kw_only=True, eq=False)
class TrainingSet:
    """Images and answers by index.

    Attributes:
        images: Function of indices (B,) to clean images of the guided stage, (B, 3, H, W) in
            [-1, 1], on the network's device.
        answers: Function of indices (B,) to the teacher's answers, or to labels.
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
        """Images with their labels, or else with the model's answers to those of the last stage.

        The model is on the device, in evaluation mode.
        """
        noised = data.images(range(len(data)), 0)
        last = noised if len(data.stages) == 1 else data.images(range(len(data)), -1)
        answers: Any
        if isinstance(data, LabelledImages):
            answers = data.labels.to(device)
        else:
            with torch.no_grad():
                parts = [scaled(part.to(device)) for part in torch.split(last, batch)]
                answers = joined([model(x0, NoiseLevel.clean(len(x0))) for x0 in parts])
        return cls(
            images=lambda rows: scaled(noised[rows].to(device)),
            answers=lambda rows: each_tensor(lambda all_: all_[rows.to(all_.device)], answers),
            supervised=isinstance(data, LabelledImages),
            count=len(data),
            shape=data.image_shape(0),
        )
