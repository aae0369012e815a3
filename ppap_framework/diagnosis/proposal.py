"""How many experts there could be and where they could begin, chosen by how fast a network's
understanding falls with noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ppap_framework.errors import UsageError

MOST_EXPERTS = 10
"""The largest number that `propose_number` proposes."""

_SHARE = 0.25
"""Largest share of the rise of D that `propose_number` leaves to one expert."""

_ROUNDING = 0.01

_FLOOR = 0.25
"""Share of all timesteps that is divided equally among experts, whatever the curve says."""


def propose_boundaries(
    timesteps: Sequence[int], disagreement: Sequence[float], schedule_length: int, experts: int
) -> list[int]:
    """Base timesteps at which experts 1 to N - 1 should begin, from a curve of disagreement.

    D(t), the distance between what the untouched network says of images at timestep t and of the
    same images without noise, is how much an expert has to correct there. One expert makes one
    correction for its whole range, so the difficulty is not how large D is but how much it varies
    within the range. Of all ways to cut the range of a rising D in N, equal parts of its variation
    make the largest part smallest: D then rises by the same amount within each expert's range, and
    ranges are narrow where understanding is lost quickly.

    D is measured on a few images at a few levels, so the closest rising curve takes its place
    (isotonic least squares), with straight lines between the levels. Where it is level, as it is
    once the network sees nothing at all, any cut is as good as another, and the middle is taken.

    The curve is not trusted alone: an expert that owned next to no timesteps would guide next to no
    steps, and D may be level although what has to be corrected is not. So a quarter of the
    timesteps is divided equally, T / (4 N) to each expert at least, and the variation of D decides
    on the rest. A straight or a level D gives ranges of equal width, `NoiseRanges.equal`.

    Args:
        timesteps: Rising, in [0, T), at which D was measured; it is taken to be level before the
            first and after the last.
        disagreement: D at each of these, in any unit: only the shape of the curve counts.
        schedule_length: T.
        experts: N.

    Returns:
        N - 1 timesteps, rising, in [1, T), as `NoiseRanges.from_timesteps` takes them. No range
        between them is narrower than T / (4 N).

    Raises:
        UsageError: If there are more experts than timesteps, or the curve is not one.
    """
    if not 1 <= experts <= schedule_length:
        raise UsageError(
            f"cannot share {schedule_length} timesteps among {experts} experts",
            hint=f"use a number from 1 to {schedule_length}",
        )
    _check_curve(timesteps, disagreement, schedule_length)
    least = math.ceil(_FLOOR * schedule_length / experts)
    rest = schedule_length - least * experts
    last = max(1, schedule_length - 1)
    shares = [0.0, *(t / last for t in timesteps), 1.0]
    rising = rising_fit(disagreement)
    levels = [rising[0], *rising, rising[-1]]
    starts = []
    for k in range(1, experts):
        place = _reached(shares, levels, k / experts)
        # Rounding errors must not make a whole number fall short of itself.
        starts.append(k * least + math.floor(place * rest + 1e-9 * schedule_length))
    return starts


def propose_number(
    timesteps: Sequence[int], disagreement: Sequence[float], schedule_length: int
) -> int:
    """The number of experts that a curve of disagreement asks for.

    It is the smallest N for which, with the boundaries of `propose_boundaries`, no expert has to
    cover more than a quarter of the rise of D. Four do for a curve that rises evenly; one that
    rises steeply needs more, since every expert also has timesteps where there is nothing to gain.
    A curve that does not rise needs one. The arguments are those of `propose_boundaries`.

    Returns:
        From 1 to `MOST_EXPERTS`, and at most T.

    Raises:
        UsageError: As `propose_boundaries`.
    """
    _check_curve(timesteps, disagreement, schedule_length)
    rising = rising_fit(disagreement)
    rise = rising[-1] - rising[0]
    if rise <= 0.0:
        return 1
    most = min(MOST_EXPERTS, schedule_length)
    for experts in range(1, most):
        starts = propose_boundaries(timesteps, disagreement, schedule_length, experts)
        levels = np.interp(starts, timesteps, rising)
        # Boundaries are whole timesteps, so equal parts differ by a few of them.
        if np.diff([rising[0], *levels, rising[-1]]).max() <= (_SHARE + _ROUNDING) * rise:
            return experts
    return most


def rising_fit(values: Sequence[float]) -> list[float]:
    """The closest rising sequence in least squares: neighbours that fall are pooled and replaced by
    their mean until none fall (Ayer et al. 1955).
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = float(value), 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            earlier, others = pools.pop()
            total, count = total + earlier, count + others
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


def _reached(places: Sequence[float], levels: Sequence[float], share: float) -> float:
    """The place, from 0 to 1, at which a piecewise linear, rising curve has risen by a share, in
    (0, 1), of its whole rise; the middle of several.
    """
    rise = levels[-1] - levels[0]
    if rise <= 0.0:
        return share
    # The tolerance makes one place of those that differ by rounding errors.
    wanted, near = levels[0] + share * rise, 1e-12 * rise
    low = next(k for k, level in enumerate(levels) if level >= wanted - near)
    high = next(k for k in reversed(range(len(levels))) if levels[k] <= wanted + near)
    if high >= low:  # on the curve at these, and level between them
        return (places[low] + places[high]) / 2.0
    part = (wanted - levels[high]) / (levels[low] - levels[high])
    return places[high] + part * (places[low] - places[high])


def _check_curve(timesteps: Sequence[int], disagreement: Sequence[float], length: int) -> None:
    inside = all(0 <= t < length for t in timesteps)
    if not timesteps or not inside or any(b <= a for a, b in pairwise(timesteps)):
        raise UsageError(
            f"a curve cannot be measured at timesteps {list(timesteps)[:8]}",
            hint=f"use rising numbers from 0 to {length - 1}",
        )
    if len(disagreement) != len(timesteps):
        raise UsageError(
            f"a curve has {len(disagreement)} values at {len(timesteps)} timesteps",
            hint="give one for each",
        )
    for t, value in zip(timesteps, disagreement, strict=True):
        if not math.isfinite(value):
            raise UsageError(
                f"the disagreement at timestep {t} is {value}", hint="leave that timestep out"
            )
