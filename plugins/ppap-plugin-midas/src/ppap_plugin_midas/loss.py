r"""The task losses of depth.

Maps are disparity-like: larger is nearer. A prediction is d, (B, h, w); a target is d*, (B, H, W)
or (1, H, W), resized to the prediction's h x w, with NaN where unknown. A network trained on many
sources predicts disparity only up to scale and shift, so maps d and s d + t with s > 0 are
equivalent.

Ranftl et al., "Towards Robust Monocular Depth Estimation: Mixing Datasets for Zero-shot
Cross-dataset Transfer" (MiDaS), arXiv 1907.01341, section 5, brings both maps to a common frame
with a robust estimate of shift and scale,

    t(d) = median(d),    s(d) = mean |d - t(d)|,    d^ = (d - t(d)) / s(d),

and compares them by the mean of |d^ - d^*|.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.author import TaskLoss

__all__ = ["DepthMSE", "ScaleShiftInvariant", "depth_metrics"]

_FLAT = 1e-4  # a map is constant if its contrast is below this share of its maximum
_FARTHEST = 100.0  # in metrics: upper bound of distances, relative to the nearest


@final
class ScaleShiftInvariant(TaskLoss):
    """The scale-and-shift-invariant loss of MiDaS with robust alignment.

    It is the mean absolute difference of two maps with median 0 and mean absolute deviation 1: 0 if
    one map is the other scaled and shifted, and at most 2. A constant map is aligned to 0, with a
    finite gradient. Unlike MiDaS, the loss is not halved and does not discard the largest tenth of
    the differences.
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over known pixels of |d^ - d^*|: (B,), in [0, 2]; 0 if none is known."""
        return _aligned_difference(prediction, target)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The same between two predictions of any resolutions: (B,)."""
        return _aligned_difference(student, teacher)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """See `depth_metrics`."""
        return depth_metrics(prediction, target)


@final
class DepthMSE(TaskLoss):
    """Mean squared difference of two maps, the published PPAP code's loss for depth experts.

    Scale and shift matter, so the target must come from the same network.
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over known pixels of (d - d*)^2: (B,); 0 if none is known."""
        wanted, known = _fitted(target, prediction)
        return _mean((prediction.float() - wanted) ** 2, known)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The same between two predictions of any resolutions: (B,)."""
        return self.energy(student, teacher)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """See `depth_metrics`."""
        return depth_metrics(prediction, target)


def depth_metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Metrics of depth estimation, each (B,), over known pixels.

    The prediction is aligned with the target by least squares in disparity, a = s d + t with (s, t)
    = argmin sum (s d + t - d*)^2. Distances are z = 1 / max(a, f) and z* = 1 / max(d*, f), with f a
    hundredth of the target's largest disparity: distances are limited to a hundred times the
    nearest one.

    Returns:
        `abs_rel`: the mean of |z - z*| / z*, 0 at best. `delta1`: the share of pixels where
        max(z / z*, z* / z) < 1.25. `correlation`: Pearson's, of d and d*, before alignment, so that
        its sign tells near from far; 0 if one of them is constant.
    """
    wanted, known = _fitted(target, prediction)
    d, wanted, known = (x.flatten(1) for x in (prediction.double(), wanted.double(), known))
    mean_d, mean_w = _mean(d, known)[:, None], _mean(wanted, known)[:, None]
    d, offset = torch.where(known, d - mean_d, 0.0), torch.where(known, wanted - mean_w, 0.0)
    variance_d, variance_w = _mean(d**2, known), _mean(offset**2, known)
    covariance = _mean(d * offset, known)
    flat_d = variance_d <= (_FLAT * mean_d[:, 0]) ** 2
    flat = flat_d | (variance_w <= (_FLAT * mean_w[:, 0]) ** 2)
    slope = torch.where(flat_d, 0.0, covariance / torch.where(flat_d, 1.0, variance_d))
    spread = torch.where(flat, 1.0, variance_d * variance_w).sqrt()
    correlation = torch.where(flat, 0.0, covariance / spread)
    largest = wanted.masked_fill(~known, 0.0).amax(1, keepdim=True)
    floor = (largest / _FARTHEST).clamp_min(torch.finfo(torch.float64).tiny)
    near = torch.maximum(slope[:, None] * d + mean_w, floor)  # 1 / z
    wanted = torch.maximum(wanted.masked_fill(~known, 1.0), floor)
    worst = torch.maximum(near / wanted, wanted / near)
    return {
        "abs_rel": _mean((wanted / near - 1).abs(), known).float(),
        "delta1": _mean((worst < 1.25).double(), known).float(),
        "correlation": correlation.float(),
    }


def _aligned_difference(prediction: Tensor, target: Tensor) -> Tensor:
    wanted, known = _fitted(target, prediction)
    return _mean((_framed(prediction.float(), known) - _framed(wanted, known)).abs(), known)


def _framed(d: Tensor, known: Tensor) -> Tensor:
    """(d - t(d)) / s(d), (B, h, w); 0 where unknown or if the map is constant."""
    rows = d.flatten(1)
    median = rows.masked_fill(~known.flatten(1), torch.nan).nanmedian(1).values.nan_to_num()
    centred = d - median[:, None, None]
    spread = _mean(centred.abs(), known)
    largest = torch.where(known, d, 0.0).detach().abs().amax((1, 2))
    flat = spread <= _FLAT * largest  # both sides are 0 if nothing is known or all is 0
    scale = torch.where(flat, 1.0, spread)
    return centred / scale[:, None, None] * (known & ~flat[:, None, None])


def _fitted(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Resize a target: d*, (B, h, w), 0 where unknown, and the mask of known pixels."""
    wanted = target.detach().float()[:, None]  # (B or 1, 1, H, W)
    known = wanted.isfinite()
    wanted = torch.where(known, wanted, 0.0)
    if wanted.shape[-2:] != prediction.shape[-2:]:
        share = _resized(known.float(), prediction)
        wanted = _resized(wanted, prediction) / share.clamp_min(0.5)
        known = share >= 0.5  # at least half of the pixel
        wanted = torch.where(known, wanted, 0.0)
    return wanted[:, 0].expand_as(prediction), known[:, 0].expand_as(prediction)


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(maps, size, mode="bilinear", antialias=True)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the known pixels of each image, (B,); 0 if there are none."""
    values, known = values.flatten(1), known.flatten(1)
    return torch.where(known, values, 0.0).sum(1) / known.sum(1).clamp_min(1)
