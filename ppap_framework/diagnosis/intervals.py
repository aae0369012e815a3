"""95 % intervals by resampling images.

The bootstrap (Efron 1979) draws N of N images with replacement, many times. Repeated images bias
figures that are no means, such as a Frechet distance, so the interval removes this bias:

    [v + q_0.025 - mean, v + q_0.975 - mean]        q, mean: of the resampled figures

For a mean it is the percentile interval, for other figures an interval of their expectation at N
images. Resamples depend on N alone, so differences of resampled figures give paired intervals.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

SEED = 20221205
_TAILS = ((1 - 0.95) / 2, (1 + 0.95) / 2)

Floats: TypeAlias = NDArray[np.float64]


@attrs.frozen
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(images: int, resamples: int = 1000) -> Floats:
    """Count of each image in each resample: (resamples, images), rows sum to `images`."""
    rng = np.random.default_rng([SEED, images])
    return rng.multinomial(images, np.full(images, 1.0 / images), size=resamples).astype(np.float64)


def interval(
    value: float, resampled: Floats, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """The interval, within [least, most], of a figure and its resamples (R,); NaN if not finite."""
    value = float(value)
    if not np.isfinite(resampled).all():
        return Interval(value, math.nan, math.nan)
    low, high = (value + np.quantile(resampled, _TAILS) - resampled.mean()).tolist()
    # If few resamples differ, both ends may lie on one side of the value.
    return Interval(value, max(least, min(value, low)), min(most, max(value, high)))


def share_interval(hits: NDArray[Any], resampled: Floats) -> Interval:
    """The interval of a share of hits, (N,) of 0 and 1.

    If all images agree, the bound is the exact one (Clopper and Pearson 1934).
    """
    share = float(np.mean(hits))
    if 0.0 < share < 1.0:
        return interval(share, resampled, 0.0, 1.0)
    doubt = 1.0 - math.pow(_TAILS[0], 1.0 / len(hits))
    return Interval(share, 1.0 - doubt, 1.0) if share else Interval(share, 0.0, doubt)


def as_json(record: Any) -> dict[str, Any]:
    """An attrs record as JSON, its numbers as `rounded`, without fields that are None."""
    return attrs.asdict(
        record,
        filter=lambda _, value: value is not None,
        value_serializer=lambda _, __, value: rounded(value) if isinstance(value, float) else value,
    )


def rounded(number: float) -> float | None:
    """Six significant digits; None if not finite."""
    return float(f"{number:.6g}") if math.isfinite(number) else None
