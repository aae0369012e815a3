"""The curves that the scales of rows multiply: calibrated ones, kept in files, and EluCD's."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import torch

from ppap_framework.diffusion import Process
from ppap_framework.errors import UsageError
from ppap_framework.experts import SUFFIX, BundleFile, ScaleCurve, same_loss
from ppap_framework.files import digest, read_json, write_json
from ppap_framework.guidance import Guide
from ppap_framework.learn import calibrate
from ppap_framework.run import Compute, LoadedBackend, Sampling
from ppap_framework.runtime import Progress, Watch
from ppap_plugin_bench.images import weights

_PICTURES = 64
_FACTOR = 0.3


def calibrated(
    backend: LoadedBackend,
    guide: Guide,
    sampling: Sampling,
    compute: Compute,
    folder: Path,
    progress: Watch,
) -> ScaleCurve:
    """The calibrated curve of a guide: that of its experts' bundle for its loss; else one from a
    file in the folder; else a new one, kept there. Bundles are not changed.

    Args:
        guide: A guide with its experts chosen.
        sampling: How the pictures are drawn, and through which image the guide looks.

    Raises:
        UsageError: If the guide cannot be calibrated.
    """
    bundle = guide.experts if isinstance(guide.experts, BundleFile) else None
    curve = bundle and bundle.calibration
    if isinstance(curve, ScaleCurve) and same_loss(curve.loss, guide.loss_record):
        return curve
    assert guide.origin is not None  # it was requested by name
    depends_on = {
        "backend": weights(backend.origin),
        "guide": weights(guide.origin),
        "experts": bundle and bundle.sha256,
        "loss": guide.loss_record,
        "sampling": sampling.record(),
        "pictures": _PICTURES,
        "precision": compute.precision,
        "device": compute.place.type,
    }
    path = folder / f"{digest(depends_on)[:16]}.json"
    if kept := read_json(path, "delete it"):
        return ScaleCurve(**kept["curve"])
    folder.mkdir(parents=True, exist_ok=True)

    def told(now: Progress) -> None:
        progress(attrs.evolve(now, task=f"calibrating {guide.name}"))

    with tempfile.TemporaryDirectory(dir=folder) as place:
        copy = None
        if bundle is not None:
            copy = Path(shutil.copyfile(bundle.path, Path(place) / f"copy{SUFFIX}"))
        how: Any = {"num": _PICTURES, "sampling": sampling, "compute": compute, "progress": told}
        try:
            curve = calibrate(backend, attrs.evolve(guide, experts=None), copy, **how)
        except UsageError as error:
            hint = 'give the row absolute scales, such as "raw:4"'
            raise UsageError(f"row {guide.name!r}: {error.message}", hint=hint) from error
    write_json(path, {**depends_on, "curve": attrs.asdict(curve)})
    return curve


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
