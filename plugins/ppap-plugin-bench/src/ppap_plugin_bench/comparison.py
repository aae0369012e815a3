"""Comparison of methods along their curves of fidelity against FID.

A method's curve is the polyline through its points in the order of their scales, from the unguided
model on if that is a row. At equal FID, a row at its default is compared with the highest fidelity
that the other curve has anywhere at most at the row's FID; at equal fidelity, with the lowest FID
anywhere at least at its fidelity. For resampled images every point moves, so intervals are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppap_framework.diagnosis.intervals import Floats, as_json, interval
from ppap_plugin_bench.assessment import Assessment
from ppap_plugin_bench.experiment import Better


def best_within(cost: Floats, gain: Floats, limit: Floats) -> Floats:
    """Highest gain along a polyline where its cost is at most the limit.

    Args:
        cost: Of K points, in their order, (K, R).
        gain: The same.
        limit: (R,).

    Returns:
        (R,); NaN where the cost is above the limit everywhere.
    """
    points = np.where(cost <= limit, gain, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        along = (limit - cost[:-1]) / np.diff(cost, axis=0)
        crossed = gain[:-1] + along * np.diff(gain, axis=0)
    crossings = np.where((along > 0.0) & (along < 1.0), crossed, -np.inf)
    best = np.concatenate([points, crossings]).max(0)
    return np.where(np.isfinite(best), best, np.nan)


def at_equal(
    row: Assessment, curve: Sequence[Assessment], figure: str, better: Better
) -> dict[str, Any]:
    """A row's fidelity minus a curve's at the row's FID, and its FID minus the curve's at the row's
    fidelity, as JSON.

    `ends` says that the whole curve stays below the row's FID: its last points do not show how
    far it goes. Values are None where the curve nowhere has that FID or fidelity.
    """
    sign = 1.0 if better == "higher" else -1.0
    cost, gain = _moved(row, "fid"), sign * _moved(row, figure)
    costs = np.stack([_moved(point, "fid") for point in curve])
    gains = sign * np.stack([_moved(point, figure) for point in curve])
    fidelity = sign * (gain - best_within(costs, gains, cost))
    fid = cost + best_within(-gains, -costs, -gain)
    return {
        "fidelity": as_json(interval(fidelity[0], fidelity[1:])),
        "fid": as_json(interval(fid[0], fid[1:])),
        "ends": bool(costs[:, 0].max() < cost[0]),
    }


def _moved(found: Assessment, figure: str) -> Floats:
    """A figure and its resamples, (1 + R,), without the bias of resampling."""
    value, resampled = found.figures[figure].value, found.resampled[figure]
    return np.concatenate([[value], value + resampled - resampled.mean()])
