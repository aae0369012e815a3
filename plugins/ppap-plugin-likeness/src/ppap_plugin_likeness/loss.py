"""Losses of likeness.

A prediction is phi(x), (B, F), of `descriptors`. A target holds R references, (B, R, 1 + F) or (1,
R, 1 + F): the weight of each, of the sum 1, and its phi.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ppap_framework.author import TaskLoss

__all__ = ["Mean", "Nearest"]


@final
class Mean(TaskLoss):
    """The weighted mean of squared distances from the references.

    Its gradient is that of the squared distance from the weighted mean of their phi: it mixes
    them.
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """sum_r w_r |phi - phi_r|^2: (B,)."""
        return (target[..., 0] * _distances(prediction, target)).sum(1)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """|phi - phi'|^2: (B,)."""
        return _distance(student, teacher)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The distance from the nearest reference."""
        return {"nearest": _distances(prediction, target).amin(1)}


@final
class Nearest(TaskLoss):
    """The squared distance from the reference that is nearest to each image; weights do not count.

    Each image may become like another reference.
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """min_r |phi - phi_r|^2: (B,)."""
        return _distances(prediction, target).amin(1)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """|phi - phi'|^2: (B,)."""
        return _distance(student, teacher)


def _distances(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distances from R references, (B, R), one by one, since F may be millions."""
    references = target[..., 1:].unbind(1)
    return torch.stack([_distance(prediction, reference) for reference in references], 1)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    wide = torch.promote_types(one.dtype, torch.float32)
    return (one.to(wide) - other).square().sum(-1)
