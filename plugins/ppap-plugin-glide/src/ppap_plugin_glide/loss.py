"""The task loss of images and texts in a shared embedding space."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor

from ppap_framework.author import TaskLoss

__all__ = ["ClipSimilarity"]


@final
class ClipSimilarity(TaskLoss):
    """Negative similarity of images and a text.

    Predictions are embeddings (B, D) whose norm is the model's logit scale; targets are unit
    embeddings (B, D) or (1, D).
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """- s cos(image, text) with the logit scale s: (B,).

        Source: Nichol et al. 2021, arXiv 2112.10741, section 2.4.
        """
        return -(prediction.float() * target).sum(-1)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """1 - cos: (B,)."""
        return 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The cosine."""
        return {"cosine": F.cosine_similarity(prediction.float(), target.float(), dim=-1)}
