"""Scales that depend on how noisy an image is."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from ppap_framework.errors import UsageError
from ppap_framework.experts import NoiseRanges
from ppap_framework.noise import NoiseLevel


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen
class RangeScales:
    """N finite scales, one for each of N ranges of noise levels, such as calibration finds.

    Any other values raise a UsageError.
    """

    ranges: NoiseRanges
    values: tuple[float, ...] = attrs.field(converter=_floats)

    def __attrs_post_init__(self) -> None:
        if len(self.values) != len(self.ranges) or not all(map(math.isfinite, self.values)):
            raise UsageError(
                f"{len(self.ranges)} ranges of noise levels cannot have the scales "
                f"{list(self.values)}",
                hint="give a finite number for each",
            )

    def at(self, level: NoiseLevel) -> Tensor:
        """The scale of each of B noise levels: (B, 1, 1, 1), float64, on the CPU."""
        values = torch.tensor(self.values, dtype=torch.float64)
        return values[self.ranges.index(level)][:, None, None, None]
