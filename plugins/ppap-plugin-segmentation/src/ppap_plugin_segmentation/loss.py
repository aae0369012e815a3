"""The task loss of semantic segmentation."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.author import TaskLoss
from ppap_plugin_segmentation.options import SegmentationCrossEntropyOptions

__all__ = ["SegmentationCrossEntropy", "resized_logits"]


@final
class SegmentationCrossEntropy(TaskLoss):
    """Per-pixel cross-entropy with a mask, and KL divergence between two predictions.

    Predictions are logits (B, K, h, w); targets are classes (B, H, W) or (1, H, W), int64. Pixels
    outside [0, K), such as the usual 255, are ignored.

    Both are compared at the finer of the two resolutions: logits are resized bilinearly, as in
    training segmentation networks, and targets by nearest neighbour. This keeps thin structures of
    the mask, and coarser logits still learn subpixel edges.
    """

    def __init__(self, options: SegmentationCrossEntropyOptions | None = None) -> None:
        self.temperature = (options or SegmentationCrossEntropyOptions()).temperature

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean of -log p(target) over valid pixels: (B,), in nats; 0 if there are none."""
        logits, classes = _aligned(prediction, target)
        counted = _counted(classes, logits.shape[1])
        losses = F.cross_entropy(logits, torch.where(counted, classes, 0), reduction="none")
        return (losses * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(softmax(teacher / temperature) || softmax(student)), averaged over pixels: (B,), nats.

        The temperature applies only to the teacher.
        """
        size = _finer(student, teacher)
        log_q = resized_logits(student, size).log_softmax(1)
        log_p = (resized_logits(teacher, size) / self.temperature).log_softmax(1)
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
        return divergence.mean((1, 2))

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`mean_iou` and `pixel_accuracy` of the likeliest classes over valid pixels.

        The mean IoU is over classes in the prediction or the target. Both are 0 if no pixel is
        valid.
        """
        logits, classes = _aligned(prediction, target)
        number = logits.shape[1]
        counted = _counted(classes, number)
        guessed = logits.argmax(1)
        right = counted & (guessed == classes)
        hits = _histogram(classes, right, number)
        union = _histogram(classes, counted, number) + _histogram(guessed, counted, number) - hits
        there = union > 0
        iou = torch.where(there, hits / union.clamp(min=1), 0.0)
        return {
            "mean_iou": iou.sum(1) / there.sum(1).clamp(min=1),
            "pixel_accuracy": hits.sum(1) / counted.sum((1, 2)).clamp(min=1),
        }


def resized_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) as float32 (B, K, *size), bilinearly; unchanged if they have that size."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _aligned(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K, H, W) and classes (B, H, W) at the finer resolution."""
    size = _finer(prediction, target)
    classes = target
    if target.shape[-2:] != size:
        # float64 holds every class exactly.
        enlarged = F.interpolate(target[:, None].double(), size, mode="nearest-exact")
        classes = enlarged[:, 0].to(target.dtype)
    return resized_logits(prediction, size), classes.expand(len(prediction), -1, -1)


def _finer(one: Tensor, other: Tensor) -> tuple[int, int]:
    (a, b), (c, d) = one.shape[-2:], other.shape[-2:]
    return max(a, c), max(b, d)


def _counted(classes: Tensor, number: int) -> Tensor:
    return (classes >= 0) & (classes < number)


def _histogram(classes: Tensor, where: Tensor, number: int) -> Tensor:
    """Number of pixels of each class in each image: (B, number), float32."""
    rows = torch.arange(len(classes), device=classes.device)[:, None, None]
    keys = (rows * number + classes)[where]
    counts = torch.bincount(keys, minlength=len(classes) * number)
    return counts.reshape(len(classes), number).float()
