r"""Losses of embeddings.

A prediction is an embedding u, (B, D). A target holds K embeddings v_k with weights w_k as w_k v_k,
(B, K, D) or (1, K, D), where v_k are unit vectors and sum_k |w_k| = 1. A negative weight asks for
the opposite of v_k:

    E(u) = sum_k |w_k| d(u, sign(w_k) v_k)

Thus a negative text has an energy that is bounded below, and pulls hardest where it is near.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.author import TaskLoss

__all__ = ["Cosine", "Spherical"]

_NEAREST = 1e-12  # bound of squared chords, where the derivative of the angle is infinite
_FARTHEST = 4.0 - 1e-6


@final
class Spherical(TaskLoss):
    """Half the squared angle, the distance in Crowson's CLIP-guided diffusion.

    With theta = 2 arcsin(|u - v| / 2) for unit vectors, d = theta^2 / 2. Its gradient grows with
    the angle, so it pulls hardest where an image is farthest from the target.
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """sum_k |w_k| theta_k^2 / 2, in [0, pi^2 / 2]: (B,)."""
        u, weights = _unit(prediction)[:, None], target.square().sum(-1).sqrt()
        return (weights * _half_squared_angle(u, _unit(target))).sum(-1)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """theta^2 / 2 between two embeddings: (B,)."""
        return _half_squared_angle(_unit(student), _unit(teacher))

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The weighted sum of cosines, sum_k w_k cos(u, v_k)."""
        return {"cosine": _cosine(prediction, target)}


@final
class Cosine(TaskLoss):
    """One minus the cosine; its gradient vanishes for opposite embeddings."""

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """sum_k |w_k| (1 - cos(u, sign(w_k) v_k)) = 1 - sum_k w_k cos(u, v_k): (B,), in [0, 2]."""
        return 1.0 - _cosine(prediction, target)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """1 - cos between two embeddings: (B,)."""
        return 1.0 - (_unit(student) * _unit(teacher)).sum(-1)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The weighted sum of cosines, sum_k w_k cos(u, v_k)."""
        return {"cosine": _cosine(prediction, target)}


def _unit(embedding: Tensor) -> Tensor:
    wide = torch.promote_types(embedding.dtype, torch.float32)
    return F.normalize(embedding.to(wide), dim=-1)


def _cosine(prediction: Tensor, target: Tensor) -> Tensor:
    return (_unit(prediction)[:, None] * target).sum((-2, -1))


def _half_squared_angle(u: Tensor, v: Tensor) -> Tensor:
    chord = (u - v).square().sum(-1).clamp(_NEAREST, _FARTHEST).sqrt()
    return 2.0 * torch.arcsin(chord / 2.0).square()
