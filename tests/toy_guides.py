"""Guides of functions, and a network that a user might have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Target, TargetInput
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run import FunctionLoss


class Brightness(nn.Module):
    """Two logits, the second larger the brighter the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-5.0, 5.0]))
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        self.given = images
        return self.dropout(images.mean((1, 2, 3))[:, None] * self.weight)


class Looking(GuidanceModel):
    """Sees images through a function of them and their level."""

    network = nn.Identity()

    def __init__(self, look: Callable[[Tensor, NoiseLevel], Any]) -> None:
        super().__init__()
        self.look = look

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        assert level is not None
        return self.look(images, level)

    def target(self, given: TargetInput) -> Target:
        raise NotImplementedError


def guide_of(
    look: Callable[[Tensor, NoiseLevel], Any],
    energy: Callable[[Any, Tensor], Tensor],
    target: Tensor,
    **changes: Any,
) -> Guide:
    """A guide of two functions, with a scale of 1."""
    return Guide(
        model=Looking(look),
        loss=FunctionLoss(energy),
        target=Target(value=target, label=""),
        **{"name": "looking"} | changes,
    )
