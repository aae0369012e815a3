"""Guidance scales that depend on the noise level, as a bundle of experts states them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import torch
from attrs.validators import optional
from torch import Tensor

from ppap_framework.errors import UsageError
from ppap_framework.experts._rules import json_object
from ppap_framework.experts.ranges import NoiseRanges, floats
from ppap_framework.noise import NoiseLevel


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

    log_snr: tuple[float, ...] = attrs.field(converter=floats)
    scales: tuple[float, ...] = attrs.field(converter=floats)
    errors: tuple[float, ...] = attrs.field(converter=floats)
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


@attrs.frozen
class RangeScales:
    """One scale, of `values`, for each of N ranges of noise levels, as bundles without a curve may
    have; `loss` as for `ScaleCurve`. UsageError if there are not N finite numbers.
    """

    ranges: NoiseRanges
    values: tuple[float, ...] = attrs.field(converter=floats)
    loss: Mapping[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.values) != len(self.ranges) or not all(map(math.isfinite, self.values)):
            fault = f"{len(self.ranges)} ranges of noise levels cannot have the scales"
            raise UsageError(f"{fault} {[*self.values]}", hint="give a finite number for each")

    def at(self, level: NoiseLevel) -> Tensor:
        """The scale at B noise levels: (B, 1, 1, 1), float64, on the CPU."""
        values = torch.tensor(self.values, dtype=torch.float64)
        return values[self.ranges.index(level)][:, None, None, None]
