r"""The task loss of object detection.

A prediction is a mapping of "logits", (B, Q, K + 1), of K classes and, last, of nothing, and of
"boxes", (B, Q, 4), as corners (x1, y1, x2, y2) in fractions of the image from the top left. A
target is (B, n, 5) or (1, n, 5): a row (class, x1, y1, x2, y2) for each wanted box; rows of a
negative class stand for none.

As in DETR (Carion et al. 2020, arXiv 2005.12872), each wanted box y_i = (c_i, b_i) is assigned to
another query sigma(i), so that the total cost is least (eq. 1):

    sum_i -w_class p_sigma(i)(c_i) + L_box(b_i, b_sigma(i))
    L_box(b, b') = w_l1 |b - b'|_1 + w_iou (1 - GIoU(b, b'))

where |.|_1 is that of center, width and height. The energy is eq. 2 with means, so that it depends
neither on the number of queries nor on that of boxes:

    E = mean_i [-w_class log p_sigma(i)(c_i) + L_box(b_i, b_sigma(i))]
        + w_nothing mean_{q not in sigma} -log p_q(nothing)

The assignment is piecewise constant, so the gradient of E is exact almost everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ppap_framework.author import TaskLoss
from ppap_plugin_detection.options import BoxesOptions

__all__ = ["Boxes", "areas_of", "generalized_iou"]

_TINY = 1e-9  # of areas, so that boxes without one have no IoU instead of an undefined one
_OVERLAP = 0.5  # from which a detection counts as that of a wanted box

Prediction = Mapping[str, Tensor]


@final
class Boxes(TaskLoss):
    """Distance of detections from wanted boxes by set matching, and of two detectors' answers."""

    def __init__(self, options: BoxesOptions | None = None) -> None:
        self._options = options or BoxesOptions()

    def energy(self, prediction: Prediction, target: Tensor) -> Tensor:
        """E as above: (B,), from 0. An image without wanted boxes shall have nothing in it."""
        log_p, boxes = prediction["logits"].log_softmax(-1), prediction["boxes"]
        wanted = target.expand(len(boxes), -1, -1)
        return torch.stack([self._energy(*each) for each in zip(log_p, boxes, wanted, strict=True)])

    def _energy(self, log_p: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
        weights = self._options
        counted = isinstance(boxes, FakeTensor)  # by a dry run: no values, any assignment costs so
        rows = (wanted if counted else wanted[wanted[:, 0] >= 0]).to(boxes.dtype)
        likely = log_p[:, rows[:, 0].long()].T  # (n, Q)
        apart = self._distance(rows[:, None, 1:], boxes[None])
        own = torch.arange(len(rows), device=boxes.device)
        chosen = own if counted else _assigned(apart - weights.class_weight * likely.exp())
        each = apart[own, chosen] - weights.class_weight * likely[own, chosen]
        free = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        free[chosen] = False
        nothing = -(log_p[:, -1] * free).sum() / free.sum().clamp(min=1)
        return each.sum() / max(1, len(rows)) + weights.nothing_weight * nothing

    def transfer(self, student: Prediction, teacher: Prediction) -> Tensor:
        """Distance of answers, with what the teacher is unsure of counting less: (B,), from 0.

        With the teacher's p_q and the weight o_q = 1 - p_q(nothing) of its query q,

            (sum_q w_class KL(p_q || p'_q) + o_q L_box(b_q, b'_q)) / max(1, sum_q o_q)
        """
        p, boxes = teacher["logits"].softmax(-1), teacher["boxes"]
        log_q, own_boxes = student["logits"].log_softmax(-1), student["boxes"]
        objects = 1.0 - p[..., -1]
        if self._options.match_experts:
            order = self._matched(p, boxes, log_q, own_boxes)
            log_q = log_q.gather(1, order[..., None].expand_as(log_q))
            own_boxes = own_boxes.gather(1, order[..., None].expand_as(own_boxes))
        divergence = F.kl_div(log_q, p, reduction="none").sum(-1)
        each = self._options.class_weight * divergence
        each = each + objects * self._distance(boxes, own_boxes)
        return each.sum(1) / objects.sum(1).clamp(min=1.0)

    @torch.no_grad()
    def _matched(self, p: Tensor, boxes: Tensor, log_q: Tensor, own_boxes: Tensor) -> Tensor:
        """The student's query for each of the teacher's: (B, Q)."""
        weight = self._options.class_weight
        order = []
        for one, box, other, own in zip(p, boxes, log_q, own_boxes, strict=True):
            apart = self._distance(box[:, None], own[None])
            order.append(_assigned((1 - one[:, -1:]) * apart - weight * one @ other.T))
        return torch.stack(order)

    def metrics(self, prediction: Prediction, target: Tensor) -> dict[str, Tensor]:
        """`box_iou`, the mean over wanted boxes of the best IoU of a detection of the right class,
        0 if there is none; and `boxes_found`, the share with an IoU of at least 0.5. A query
        detects its likeliest class, unless nothing is likeliest. Without wanted boxes, both are 1
        if there is no detection, else 0.
        """
        logits, boxes = prediction["logits"], prediction["boxes"]
        seen = logits.argmax(-1)
        overlaps, found = [], []
        wanted = target.expand(len(boxes), -1, -1)
        for kinds, own, each in zip(seen, boxes, wanted, strict=True):
            rows = each[each[:, 0] >= 0]
            inside, union = areas_of(rows[:, None, 1:].to(own.dtype), own[None])
            iou = inside / (union + _TINY) * (rows[:, :1].long() == kinds[None])
            best = iou.amax(1)
            if not len(rows):
                best = (kinds == logits.shape[-1] - 1).all().to(own.dtype)[None]
            overlaps.append(best.mean())
            found.append((best >= _OVERLAP).to(own.dtype).mean())
        return {"box_iou": torch.stack(overlaps), "boxes_found": torch.stack(found)}

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        """L_box of corners (..., 4) that broadcast."""
        l1 = (_centered(one) - _centered(other)).abs().sum(-1)
        apart = self._options.iou_weight * (1.0 - generalized_iou(one, other))
        return self._options.l1_weight * l1 + apart


def generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """Generalized intersection over union of corners (..., 4) that broadcast, in (-1, 1].

    Source: Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1.
    """
    inside, union = areas_of(one, other)
    low = torch.minimum(one[..., :2], other[..., :2])
    high = torch.maximum(one[..., 2:], other[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return inside / (union + _TINY) - (hull - union) / (hull + _TINY)


def areas_of(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersection and the union of corners (..., 4) that broadcast."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (one, other)]
    return inside, areas[0] + areas[1] - inside


def _centered(corners: Tensor) -> Tensor:
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def _assigned(cost: Tensor) -> Tensor:
    """The column of each row with the least total cost, no two the same; (n, m), n <= m."""
    finite: Any = cost.detach().float().nan_to_num(1e6, 1e6, -1e6).cpu().numpy()
    return torch.from_numpy(linear_sum_assignment(finite)[1]).to(cost.device)
