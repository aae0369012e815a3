r"""The task losses of depth.

Maps are disparity-like: larger is nearer. A prediction is d, (B, h, w); a target is d*, (B, H, W)
or (1, H, W), resized to the prediction's h x w, with NaN where it is not known. A network that was
trained on many sources knows disparity up to a scale and a shift only, so that two maps are the
same where one is s d + t with s > 0.

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

_FLAT = 1e-4  # a map whose contrast is below this share of its largest number is constant
_FARTHEST = 100.0  # in metrics: distances beyond so many times the nearest count as that


@final
class ScaleShiftInvariant(TaskLoss):
    """The mean absolute difference of two maps after each is brought to median 0 and mean absolute
    deviation 1: the scale-and-shift-invariant loss of MiDaS with the robust alignment.

    It is 0 where one map is the other scaled and shifted, and at most 2. A constant map has nothing
    to be scaled: it is 0 everywhere then, and its gradient is finite. (MiDaS has half of this sum,
    and for training discards the largest tenth of the differences; neither is done here.)
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean over known pixels of |d^ - d^*|: (B,), in [0, 2]; 0 where nothing is known."""
        return _aligned_difference(prediction, target)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The same between two predictions, of whatever resolutions: (B,)."""
        return _aligned_difference(student, teacher)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """As `depth_metrics`."""
        return depth_metrics(prediction, target)


@final
class DepthMSE(TaskLoss):
    """The mean squared difference of two maps as they are, which the published PPAP code trains its
    depth experts by. Scale and shift count: it is for targets of the same network.
    """

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean over known pixels of (d - d*)^2: (B,); 0 where nothing is known."""
        wanted, known = _fitted(target, prediction)
        return _mean((prediction.float() - wanted) ** 2, known)

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The same between two predictions, of whatever resolutions: (B,)."""
        return self.energy(student, teacher)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """As `depth_metrics`."""
        return depth_metrics(prediction, target)


def depth_metrics(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The figures of depth estimation, each (B,), over known pixels.

    The prediction is aligned with the target by least squares in disparity, a = s d + t with (s, t)
    = argmin sum (s d + t - d*)^2. Distances are z = 1 / max(a, f) and z* = 1 / max(d*, f), where f
    is a hundredth of the target's largest disparity: what is farther than a hundred times its
    nearest point counts as that.

    Returns:
        `abs_rel`: the mean of |z - z*| / z*, 0 at best. `delta1`: the share of pixels where
        max(z / z*, z* / z) < 1.25. `correlation`: Pearson's, of d and d*, before alignment, so that
        its sign tells near from far; 0 where one of them is constant.
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
    """(d - t(d)) / s(d), (B, h, w); 0 where a map is constant or not known."""
    rows = d.flatten(1)
    median = rows.masked_fill(~known.flatten(1), torch.nan).nanmedian(1).values.nan_to_num()
    centred = d - median[:, None, None]
    spread = _mean(centred.abs(), known)
    largest = torch.where(known, d, 0.0).detach().abs().amax((1, 2))
    flat = spread <= _FLAT * largest  # where nothing is known, or all is 0, both sides are 0
    scale = torch.where(flat, 1.0, spread)
    return centred / scale[:, None, None] * (known & ~flat[:, None, None])


def _fitted(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """A target at the size of a prediction: d*, (B, h, w), 0 where unknown; and where it is not."""
    wanted = target.detach().float()[:, None]  # (B or 1, 1, H, W)
    known = wanted.isfinite()
    wanted = torch.where(known, wanted, 0.0)
    if wanted.shape[-2:] != prediction.shape[-2:]:
        share = _resized(known.float(), prediction)
        wanted = _resized(wanted, prediction) / share.clamp_min(0.5)
        known = share >= 0.5  # most of the pixel
        wanted = torch.where(known, wanted, 0.0)
    return wanted[:, 0].expand_as(prediction), known[:, 0].expand_as(prediction)


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(maps, size, mode="bilinear", antialias=True)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """Over the known pixels of each image, (B,); 0 where there are none."""
    values, known = values.flatten(1), known.flatten(1)
    return torch.where(known, values, 0.0).sum(1) / known.sum(1).clamp_min(1)
