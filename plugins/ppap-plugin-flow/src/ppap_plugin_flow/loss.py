r"""The task loss of correspondence.

A prediction is a map of features f, (B, C, h, w), of the image. A target is (B, C + 2, h, w) or
(1, C + 2, h, w): features g of the reference picture, and the wanted flow (u, v) of each of its
places i, in cells of the map; NaN where none is wanted. With unit vectors, the place i of the
reference is at the place j of the image with the probability (Sun et al. 2021, arXiv 2104.00680,
eq. 1)

    p_i(j) = softmax_j(<g_i, f_j> / temperature)

and the energy is the cross-entropy with the wanted place, mean_i -log p_i(i + (u, v)_i), where
between cells log p_i is interpolated bilinearly. Places that leave the image are left out.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.author import TaskLoss
from ppap_plugin_flow.options import CorrespondenceOptions

__all__ = ["Correspondence"]


@final
class Correspondence(TaskLoss):
    """Cross-entropy of where each point of a reference picture is found."""

    def __init__(self, options: CorrespondenceOptions | None = None) -> None:
        self._temperature = (options or CorrespondenceOptions()).temperature

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """E as above: (B,), in nats; 0 if no place is wanted."""
        log_p, place, counted = self._compared(prediction, target)
        height, width = prediction.shape[-2:]
        # One map (h, w) for each of the B h w places of the reference, read at one point.
        maps = log_p.reshape(-1, 1, height, width)
        sizes = torch.tensor([width, height], device=place.device)
        grid = (2 * place / (sizes - 1).clamp(min=1) - 1).reshape(-1, 1, 1, 2).to(maps.dtype)
        read = F.grid_sample(maps, grid, padding_mode="border", align_corners=True)
        read = read.view(len(prediction), -1)
        return -(read * counted).sum(1) / counted.sum(1).clamp(min=1)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One minus the cosine of both maps' features, averaged over places: (B,)."""
        return 1.0 - (_unit(student) * _unit(teacher)).sum(1).mean((1, 2))

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`flow_error`, the mean distance of the likeliest from the wanted place as a share of the
        side, and `points_matched`, the share of places at most one cell away in each direction.
        """
        log_p, place, counted = self._compared(prediction, target)
        width = prediction.shape[-1]
        best = log_p.argmax(-1)
        found = torch.stack([best % width, best // width], -1)
        away = (found - place).abs() * counted[..., None]
        number = counted.sum(1).clamp(min=1)
        near = (away <= 1).all(-1) & counted
        error = (away / max(prediction.shape[-2:])).norm(dim=-1).sum(1) / number
        return {"flow_error": error, "points_matched": near.sum(1) / number}

    def _compared(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With N = h w places of the reference: log p, (B, N, N); wanted places (x, y) in cells,
        (B, N, 2); and whether they are wanted and inside, (B, N).
        """
        target = target.expand(len(prediction), -1, -1, -1)
        f = _unit(prediction).flatten(2)
        g = _unit(target[:, :-2]).flatten(2).to(f.dtype)
        log_p = (torch.einsum("bci,bcj->bij", g, f) / self._temperature).log_softmax(-1)
        height, width = prediction.shape[-2:]
        cells = torch.arange(height * width, device=f.device)
        own = torch.stack([cells % width, cells // width], -1)
        place = own + target[:, -2:].flatten(2).movedim(1, 2).to(f.dtype)
        last = torch.tensor([width - 1, height - 1], device=f.device)
        counted = ((place >= 0) & (place <= last)).all(-1)  # NaN is neither
        return log_p, torch.where(counted[..., None], place, 0.0), counted


def _unit(maps: Tensor) -> Tensor:
    wide = torch.promote_types(maps.dtype, torch.float32)
    return F.normalize(maps.to(wide), dim=1, eps=1e-6)
