"""Number and boundaries of experts, from a network's disagreement over noise.

D(t), the distance between the untouched network's answers with and without noise, is the error that
an expert corrects at timestep t. It makes one correction for its whole range, so its difficulty is
the variation of D there. Boundaries that divide the rise of D equally minimize the largest.

Since D is measured on a few images at a few levels, it is replaced by the closest rising curve
(isotonic least squares), piecewise linear. On a plateau the middle is taken. A quarter of the
timesteps is divided equally, T / (4 N) to each expert, so that no expert owns almost none; the rise
of D divides the rest. A straight or constant D gives ranges of equal width, `NoiseRanges.equal`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ppap_framework.errors import UsageError

MOST_EXPERTS = 10
"""Largest result of `propose_number`."""

_FLOOR = 0.25  # share of the timesteps that is divided equally among experts
_SHARE = 0.26  # of the rise of D for one expert, a quarter: boundaries are whole timesteps


def propose_boundaries(
    timesteps: Sequence[int], disagreement: Sequence[float], schedule_length: int, experts: int
) -> list[int]:
    """Base timesteps in [1, T) at which experts 1 to N - 1 should begin, from a curve of D(t), in
    any unit, at rising timesteps in [0, T); D is constant outside of them. No range is narrower
    than T / (4 N); see `NoiseRanges.from_timesteps`. UsageError for N above T, or no such curve.
    """
    if not 1 <= experts <= schedule_length:
        message = f"cannot share {schedule_length} timesteps among {experts} experts"
        raise UsageError(message, hint=f"use a number from 1 to {schedule_length}")
    rising = _rising(timesteps, disagreement, schedule_length)
    least = math.ceil(_FLOOR * schedule_length / experts)
    rest, last = schedule_length - least * experts, max(1, schedule_length - 1)
    places = [0.0, *(t / last for t in timesteps), 1.0]
    levels = [rising[0], *rising, rising[-1]]
    reached = [_reached(places, levels, k / experts) * rest for k in range(1, experts)]
    near = 1e-9 * schedule_length  # keeps rounding errors from lowering whole numbers
    return [k * least + math.floor(t + near) for k, t in enumerate(reached, 1)]


def propose_number(
    timesteps: Sequence[int], disagreement: Sequence[float], schedule_length: int
) -> int:
    """The smallest number of experts for a curve of disagreement, at most `MOST_EXPERTS` and T.

    With the boundaries of `propose_boundaries`, whose arguments and errors these are, no expert
    covers more than a quarter of the rise of D: 4 if it is even, more if steep, 1 if there is none.
    """
    rising = _rising(timesteps, disagreement, schedule_length)
    rise, most = rising[-1] - rising[0], min(MOST_EXPERTS, schedule_length)
    for experts in range(1, most):
        starts = propose_boundaries(timesteps, disagreement, schedule_length, experts)
        levels = np.interp(starts, timesteps, rising)
        if np.diff([rising[0], *levels, rising[-1]]).max() <= _SHARE * rise:
            return experts
    return most


def rising_fit(values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Isotonic least squares: falling neighbours are replaced by their mean (Ayer et al. 1955)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        total, mass, count = value * weight, float(weight), 1
        while pools and pools[-1][0] * mass >= total * pools[-1][1]:
            earlier, other, others = pools.pop()
            total, mass, count = total + earlier, mass + other, count + others
        pools.append((total, mass, count))
    return [total / mass for total, mass, count in pools for _ in range(count)]


def _reached(places: Sequence[float], levels: Sequence[float], share: float) -> float:
    """The place in [0, 1] at which a piecewise linear curve reaches a share of its rise."""
    rise = levels[-1] - levels[0]
    if rise <= 0.0:
        return share
    # The tolerance ignores rounding errors.
    wanted, near = levels[0] + share * rise, 1e-12 * rise
    low = int(np.searchsorted(levels, wanted - near))
    high = int(np.searchsorted(levels, wanted + near, side="right")) - 1
    if high >= low:  # a plateau or a measured level
        return (places[low] + places[high]) / 2.0
    return float(np.interp(wanted, levels, places))


def _rising(timesteps: Sequence[int], disagreement: Sequence[float], length: int) -> list[float]:
    """`rising_fit` of a curve of finite values at rising timesteps in [0, T); else UsageError."""
    if not timesteps or any(b <= a for a, b in pairwise([-1, *timesteps, length])):
        message = f"a curve cannot be measured at timesteps {list(timesteps)[:8]}"
    elif len(disagreement) != len(timesteps):
        message = f"a curve has {len(disagreement)} values at {len(timesteps)} timesteps"
    elif bad := [k for k, value in enumerate(disagreement) if not math.isfinite(value)]:
        message = f"the disagreement at timestep {timesteps[bad[0]]} is {disagreement[bad[0]]}"
    else:
        return rising_fit(disagreement)
    raise UsageError(message, hint=f"give finite values at rising timesteps from 0 to {length - 1}")
