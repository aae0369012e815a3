r"""Which expert owns which noise levels (Go et al. 2023, arXiv 2212.05973, section 4.1).

N experts share the noise levels out: with boundaries b_1 > ... > b_{N-1} on the log-SNR, b_0 = inf
and b_N = -inf, expert i owns

    b_{i+1} <= lambda < b_i

so that expert 0 reads the least noisy images. Boundaries do not depend on the schedule on which
they were chosen. One between its base timesteps t - 1 and t is their mean log-SNR.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import neg

import attrs
import torch
from torch import Tensor

from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel, NoiseSchedule


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen
class NoiseRanges:
    """N half-open ranges that cover all noise levels without gap or overlap.

    Attributes:
        boundaries: N - 1 log-SNRs, falling.

    Raises:
        UsageError: If they are not finite or not strictly falling.
    """

    boundaries: tuple[float, ...] = attrs.field(converter=_floats)

    def __attrs_post_init__(self) -> None:
        if not all(map(math.isfinite, self.boundaries)):
            raise UsageError(f"boundaries of experts must be finite, not {list(self.boundaries)}")
        if not all(a > b for a, b in pairwise(self.boundaries)):
            raise UsageError(
                f"boundaries of experts must fall strictly, and {list(self.boundaries)} do not",
                hint="they are log-SNRs, the least noisy first",
            )

    @classmethod
    def equal(cls, schedule: NoiseSchedule, experts: int) -> NoiseRanges:
        """Ranges of equal width in timesteps: expert i owns floor(i T / N) <= t < floor((i+1) T /
        N), as in the paper.

        Raises:
            UsageError: For fewer timesteps than experts, or no expert.
        """
        if not 1 <= experts <= schedule.num_timesteps:
            raise UsageError(
                f"cannot share {schedule.num_timesteps} timesteps among {experts} experts",
                hint=f"use a number from 1 to {schedule.num_timesteps}",
            )
        starts = [i * schedule.num_timesteps // experts for i in range(1, experts)]
        return cls.from_timesteps(schedule, starts)

    @classmethod
    def from_timesteps(cls, schedule: NoiseSchedule, starts: Sequence[int]) -> NoiseRanges:
        """Ranges that begin at given base timesteps of a schedule.

        Args:
            schedule: The schedule, of T timesteps.
            starts: The first timestep of every expert but expert 0, rising, in [1, T).

        Raises:
            UsageError: For other numbers, or if the schedule has no noise level between such a
                timestep and the one before it.
        """
        last = schedule.num_timesteps - 1
        bounds = [0, *starts, last + 1]
        if not all(a < b for a, b in pairwise(bounds)):
            raise UsageError(
                f"experts cannot begin at timesteps {list(starts)}",
                hint=f"use rising numbers from 1 to {last}",
            )
        boundaries = []
        for t in starts:
            before, after = schedule.log_snr[t - 1].item(), schedule.log_snr[t].item()
            middle = (before + after) / 2
            if not before > middle > after:
                raise UsageError(
                    f"schedule {schedule.name!r} has no noise level between timesteps {t - 1} and "
                    f"{t} (log-SNR {before} and {after})",
                    hint="let the experts begin elsewhere",
                )
            boundaries.append(middle)
        return cls(boundaries)

    def __len__(self) -> int:
        """N."""
        return len(self.boundaries) + 1

    def owner(self, log_snr: float) -> int:
        """The expert in [0, N) that owns a noise level; that of clean images (inf) is 0."""
        return bisect_left(self.boundaries, -log_snr, key=neg)

    def index(self, level: NoiseLevel) -> Tensor:
        """The owners of B noise levels: (B,), int64."""
        return torch.tensor([self.owner(value) for value in level.log_snr.tolist()]).long()

    def timesteps(self, schedule: NoiseSchedule) -> tuple[range, ...]:
        """The base timesteps of any schedule that each of the N experts owns."""
        owners = self.index(NoiseLevel(schedule.log_snr))  # (T,), rising
        ends = torch.bincount(owners, minlength=len(self)).cumsum(0).tolist()
        return tuple(range(start, end) for start, end in pairwise([0, *ends]))
