"""A guide that is a function, for tests of what is done with guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Target, TargetInput
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run import FunctionLoss


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
