"""The curves that the scales of rows multiply: calibrated ones, kept in files, and EluCD's."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import torch

from ppap_framework.diffusion import Process
from ppap_framework.errors import UsageError
from ppap_framework.experts import ScaleCurve
from ppap_framework.guidance import Guide
from ppap_framework.learn import kept_curve
from ppap_framework.run import Compute, LoadedBackend, Sampling
from ppap_framework.runtime import Progress, Watch

_FACTOR = 0.3


def calibrated(
    backend: LoadedBackend,
    guide: Guide,
    sampling: Sampling,
    compute: Compute,
    folder: Path,
    progress: Watch,
) -> ScaleCurve:
    """The curve of `kept_curve`; UsageError names the row if the guide cannot be calibrated."""

    def told(now: Progress) -> None:
        progress(attrs.evolve(now, task=f"calibrating {guide.name}"))

    try:
        return kept_curve(backend, guide, sampling, compute, folder, told)
    except UsageError as error:
        hint = 'give the row absolute scales, such as "raw:4"'
        raise UsageError(f"row {guide.name!r}: {error.message}", hint=hint) from error


def elucd(process: Process) -> ScaleCurve:
    """The schedule of Ma et al. (2024, arXiv 2310.11311) in their released code.

    Step i of S moves its mean by (v_i + 0.3 sin(pi i / S) max_j v_j) times the gradient there, with
    v_i the variance of the reverse step. Here DDPM moves it by v_i s_i, so

        s_i = 1 + 0.3 sin(pi i / S) max_j v_j / v_i

    with the posterior variance for v_i, which the released code learns.
    """
    variances = process.posterior_log_variance_clipped.exp()
    index = torch.arange(len(process), dtype=torch.float64)
    wave = (math.pi * index / len(process)).sin()
    scales = 1.0 + _FACTOR * wave * variances.max() / variances
    levels = process.schedule.log_snr[list(process.timesteps)].double()
    rising = [values.flip(0).tolist() for values in (levels, scales)]
    return ScaleCurve(rising[0], rising[1], [0.0] * len(process))
