"""How many experts there could be and where they could begin, chosen by how a network's
understanding falls with noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ppap_framework.errors import UsageError

__all__ = ["MOST_EXPERTS", "propose_boundaries", "propose_number", "rising_fit"]

MOST_EXPERTS = 10
"""As many as `propose_number` proposes."""

_SHARE = 0.25
"""Of the rise of D, as much as `propose_number` leaves to one expert."""

_ROUNDING = 0.01

_FLOOR = 0.25
"""The share of all timesteps that experts have in equal parts, whatever the curve says."""


def propose_boundaries(
    timesteps: Sequence[int], disagreement: Sequence[float], schedule_length: int, experts: int
) -> list[int]:
    """Base timesteps at which experts 1 to N - 1 should begin, from a curve of disagreement.

    D(t), the distance between what the untouched network says of images at timestep t and of the
    same images without noise, is how much an expert has to correct there. One expert makes one
    correction for its whole range, so what is hard for it is not how large D is but how much D
    varies within the range. Of all ways to cut the range of a rising D in N, equal parts of its
    variation make the largest part smallest: D then rises by the same amount within each expert's
    range, and ranges are narrow where understanding is lost quickly.

    D is measured on a few images at a few levels, so first the closest rising curve takes its
    place (isotonic least squares), with straight lines between the levels. Where that is level, as
    it is once the network sees nothing at all, any cut is as good as another, and the middle of the
    level stretch is taken.

    The curve is not trusted alone: an expert that owned next to no timesteps would guide next to no
    steps, and D may be level though what has to be corrected is not. So a quarter of the timesteps
    is shared out equally, T / (4 N) to each expert at least, and the variation of D decides on the
    rest. A straight or a level D gives ranges of equal width, `NoiseRanges.equal`.

    Args:
        timesteps: Rising, in [0, T), at which it was measured; D is taken to be level before the
            first and behind the last.
        disagreement: At each of these, of any unit: only the shape of the curve counts.
        schedule_length: T.
        experts: N.

    Returns:
        N - 1 timesteps, rising, in [1, T), as `NoiseRanges.from_timesteps` takes them. No range
        between them is narrower than T / (4 N).

    Raises:
        UsageError: Where there are more experts than timesteps, or the curve is none.
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
    """How many experts a curve of disagreement asks for.

    It is the smallest number N of which, with the boundaries of `propose_boundaries`, none has to
    cover more than a quarter of the rise of D: what an expert corrects then varies by a quarter of
    what there is to correct at most. Four do for a curve that rises evenly; one that rises steeply
    needs more, since every expert has timesteps where there is nothing to gain as well. A curve
    that does not rise needs one.

    Args:
        timesteps: As for `propose_boundaries`, as are the others.

    Returns:
        From 1 to `MOST_EXPERTS`, and at most T.

    Raises:
        UsageError: As `propose_boundaries`.
    """
    _check_curve(timesteps, disagreement, schedule_length)
    rising = rising_fit(disagreement)
    rise = rising[-1] - rising[0]
    most = min(MOST_EXPERTS, schedule_length)
    for experts in range(1, most if rise > 0.0 else 1):
        starts = propose_boundaries(timesteps, disagreement, schedule_length, experts)
        levels = [_level_at(timesteps, rising, t) for t in starts]
        parts = [b - a for a, b in pairwise([rising[0], *levels, rising[-1]])]
        # Boundaries are whole timesteps, so that equal parts are so but for a few of them.
        if max(parts) <= (_SHARE + _ROUNDING) * rise:
            return experts
    return most if rise > 0.0 else 1


def rising_fit(values: Sequence[float]) -> list[float]:
    """The rising sequence that is closest in least squares.

    Neighbours that fall are put together and replaced by their mean, until none fall (Ayer et al.
    1955).
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
    """Where a piecewise linear, rising curve has risen by a share, in (0, 1), of its whole rise;
    the middle of where that is so.

    Args:
        places: Rising, from 0 to 1.
        levels: Of the curve at these.
        share: Of the rise.
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


def _level_at(timesteps: Sequence[int], levels: Sequence[float], t: int) -> float:
    """A piecewise linear curve at t, level outside of where it is known."""
    if t <= timesteps[0]:
        return levels[0]
    for (a, low), (b, high) in pairwise(zip(timesteps, levels, strict=True)):
        if t <= b:
            return low + (high - low) * (t - a) / (b - a)
    return levels[-1]


def _check_curve(timesteps: Sequence[int], disagreement: Sequence[float], length: int) -> None:
    inside = all(0 <= t < length for t in timesteps)
    if not timesteps or not inside or not all(a < b for a, b in pairwise(timesteps)):
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
