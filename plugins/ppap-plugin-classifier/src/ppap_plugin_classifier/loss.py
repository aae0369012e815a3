"""The task loss of classification."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor

from ppap_framework.author import TaskLoss
from ppap_plugin_classifier.options import CrossEntropyOptions

__all__ = ["CrossEntropy"]


@final
class CrossEntropy(TaskLoss):
    """Cross-entropy with a class, and KL divergence between two predictions.

    Predictions are logits (B, K), targets are classes (B,) or (1,), int64.
    """

    def __init__(self, options: CrossEntropyOptions | None = None) -> None:
        self._options = options or CrossEntropyOptions()
        self.temperature = self._options.temperature

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """log sum_k exp(tau_2 f_k) - tau_1 f_target of logits f: (B,).

        That is -log p(target) in nats if both are 1. A tau_2 below 1 lets the other classes push
        less, so the joint density of image and class counts more (Ma et al. 2024, arXiv 2310.11311,
        where both are called temperatures).
        """
        classes, logits = target.expand(len(prediction)), prediction.float()
        joint, marginal = self._options.joint, self._options.marginal
        if joint == marginal == 1.0:
            return F.cross_entropy(logits, classes, reduction="none")
        own = logits.gather(-1, classes[:, None]).squeeze(-1)
        return (marginal * logits).logsumexp(-1) - joint * own

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(softmax(teacher / temperature) || softmax(student)), summed over classes: (B,), nats.

        The temperature applies only to the teacher, as in the released PPAP code, which averages
        over classes instead.
        """
        log_q = student.float().log_softmax(-1)
        log_p = (teacher.float() / self.temperature).log_softmax(-1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Probability and rank of the target (1 is the likeliest), and top-1 accuracy."""
        classes = target.expand(len(prediction))[:, None]
        own = prediction.gather(-1, classes)  # (B, 1)
        rank = 1 + (prediction > own).sum(-1)
        return {
            "accuracy": (rank == 1).float(),
            "probability": prediction.float().softmax(-1).gather(-1, classes).squeeze(-1),
            "rank": rank.float(),
        }
