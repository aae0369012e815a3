r"""Functions of the noise level: the expert that owns it, and the guidance scale.

Experts divide the noise levels (Go et al. 2023, arXiv 2212.05973, section 4.1).

With boundaries b_1 > ... > b_{N-1} on the log-SNR, b_0 = inf and b_N = -inf, expert i owns

    b_{i+1} <= lambda < b_i

so that expert 0 reads the least noisy images. Boundaries are independent of schedules; one between
base timesteps t - 1 and t is their mean log-SNR.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import neg
from typing import Any

import attrs
import numpy as np
import torch
from attrs.validators import optional
from torch import Tensor

from ppap_framework.errors import UsageError
from ppap_framework.experts._rules import json_object
from ppap_framework.noise import NoiseLevel, NoiseSchedule


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, values))


@attrs.frozen
class NoiseRanges:
    """N half-open ranges that partition the noise levels.

    Attributes:
        boundaries: N - 1 log-SNRs; UsageError if they are not finite and strictly falling.
    """

    boundaries: tuple[float, ...] = attrs.field(converter=_floats)

    def __attrs_post_init__(self) -> None:
        if not all(map(math.isfinite, self.boundaries)):
            raise UsageError(f"boundaries of experts must be finite, not {list(self.boundaries)}")
        if not all(a > b for a, b in pairwise(self.boundaries)):
            fault = f"boundaries of experts must fall strictly, not be {list(self.boundaries)}"
            raise UsageError(fault, hint="they are log-SNRs, the least noisy first")

    @classmethod
    def equal(cls, schedule: NoiseSchedule, experts: int) -> NoiseRanges:
        """Ranges of equal width in timesteps, as in the paper; UsageError if N is not in [1, T].
        Expert i owns floor(i T / N) <= t < floor((i+1) T / N).
        """
        if not 1 <= experts <= schedule.num_timesteps:
            message = f"cannot share {schedule.num_timesteps} timesteps among {experts} experts"
            raise UsageError(message, hint=f"use a number from 1 to {schedule.num_timesteps}")
        starts = [i * schedule.num_timesteps // experts for i in range(1, experts)]
        return cls.from_timesteps(schedule, starts)

    @classmethod
    def from_timesteps(cls, schedule: NoiseSchedule, starts: Sequence[int]) -> NoiseRanges:
        """Ranges from the first base timesteps of experts 1 to N - 1, rising, in [1, T). UsageError
        if they are not, or one has the log-SNR of the timestep before.
        """
        last = schedule.num_timesteps - 1
        if not all(a < b for a, b in pairwise([0, *starts, last + 1])):
            message = f"experts cannot begin at timesteps {list(starts)}"
            raise UsageError(message, hint=f"use rising numbers from 1 to {last}")
        boundaries, log_snr = [], schedule.log_snr.tolist()
        for t in starts:
            before, after = log_snr[t - 1], log_snr[t]
            middle = (before + after) / 2
            if not before > middle > after:
                places = f"between timesteps {t - 1} and {t} (log-SNR {before} and {after})"
                fault = f"schedule {schedule.name!r} has no noise level {places}"
                raise UsageError(fault, hint="let the experts begin elsewhere")
            boundaries.append(middle)
        return cls(boundaries)

    def __len__(self) -> int:
        return len(self.boundaries) + 1

    def record(self) -> dict[str, Any]:
        """JSON."""
        return {"num_experts": len(self), "boundaries": list(self.boundaries)}

    def owner(self, log_snr: float) -> int:
        """The expert in [0, N) that owns a noise level; 0 for clean images (inf)."""
        return bisect_left(self.boundaries, -log_snr, key=neg)

    def timesteps(self, schedule: NoiseSchedule) -> tuple[range, ...]:
        """The base timesteps of a schedule that each of the N experts owns."""
        owners = [self.owner(value) for value in schedule.log_snr.tolist()]  # rising
        ends = [bisect_right(owners, expert) for expert in range(len(self))]
        return tuple(range(start, end) for start, end in pairwise([0, *ends]))


@attrs.frozen
class ScaleCurve:
    """The scale s(l) at which an energy is an honest log-likelihood, from calibration; log s is
    linear in the log-SNR between the knots, and constant beyond them.

    Attributes:
        log_snr: K knots, rising.
        scales: s at each, above 0.
        errors: Standard error of log s at each.
        loss: The loss of the energy, as `Guide.loss_record`; None if unknown.

    ValueError if there are not K of each, or they are not such numbers.
    """

    log_snr: tuple[float, ...] = attrs.field(converter=_floats)
    scales: tuple[float, ...] = attrs.field(converter=_floats)
    errors: tuple[float, ...] = attrs.field(converter=_floats)
    loss: Mapping[str, Any] | None = attrs.field(default=None, validator=optional(json_object))

    def __attrs_post_init__(self) -> None:
        columns = (self.log_snr, self.scales, self.errors)
        finite = all(map(math.isfinite, sum(columns, ())))
        rising = all(a < b for a, b in pairwise(self.log_snr))
        if len(set(map(len, columns))) != 1 or not self.log_snr or not (finite and rising):
            raise ValueError("a scale curve must have a finite scale and error at rising log-SNRs")
        if min(self.scales) <= 0.0:
            raise ValueError("the scales of a curve must be above 0")

    def at(self, level: NoiseLevel) -> Tensor:
        """s at B noise levels: (B, 1, 1, 1), float64, on the CPU."""
        found = np.interp(level.log_snr.numpy(), self.log_snr, np.log(self.scales))
        return torch.from_numpy(np.exp(found))[:, None, None, None]
