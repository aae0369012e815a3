r"""Diagnosis of a network, off-the-shelf or with experts, at each noise level, without labels.

An off-the-shelf network has seen no noise, so its gradients mislead at most noise levels: the
motivation for experts (Go et al. 2023, arXiv 2212.05973). With the guide's network f, its energy E
with target y, and the same network without experts, f_0, for every image x_0 and level:

    x_t = alpha_t x_0 + sigma_t eps(seed, i, t)
    disagreement    L(f(x_t), f_0(x_0)), L being the loss's `transfer`
    agreement       whether argmax f(x_t) = argmax f_0(x_0)         (classification)
    confidence      max softmax f(x_t)                              (classification)
    gradient norm   |g_t|,             g_t = dE(f(x_t), y) / dx_t
    cosine          g_t . g_0 / (|g_t| |g_0|),  g_0 = dE(f_0(x_0), y) / dx_0

g_t is the gradient that guidance subtracts, without the scale. If its cosine is 0, it is unrelated
to the image's content. Experts lower the mean disagreement D(t) of the untouched network.

Experts that learned to read the predicted clean image are shown that of x_t in its place.

If a backend has several stages, x_t and g_0 belong to the first one's image, and f_0 reads the last
one's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend, check_readable
from ppap_framework.diagnosis import (
    distances,
    evenly_spaced,
    level_means,
    noised,
    propose_boundaries,
    propose_number,
)
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.experts import ExpertSet
from ppap_framework.guidance import Guide
from ppap_framework.learn.batches import predicted
from ppap_framework.noise import NoiseLevel, NoiseSchedule
from ppap_framework.pixels import scaled
from ppap_framework.runtime import Progress, Watch, find_device, frozen, isolated
from ppap_plugin_diagnose.diagnosis import Diagnosis, Reading
from ppap_plugin_diagnose.intervals import Floats, Interval, bootstrap, interval, share_interval

_BOUNDS = {
    "disagreement": (-math.inf, math.inf),
    "agreement": (0.0, 1.0),
    "confidence": (0.0, 1.0),
    "gradient_norm": (0.0, math.inf),
    "cosine": (-1.0, 1.0),
}
"""Smallest and largest value of each figure."""


@isolated()
def diagnose(
    backend: DiffusionBackend,
    guide: Guide,
    images: Tensor,
    clean: Tensor | None = None,
    *,
    classification: bool = False,
    levels: int = 21,
    seed: int = 0,
    num_experts: int | None = None,
    batch: int = 64,
    device: str | torch.device = "auto",
    progress: Watch | None = None,
) -> Diagnosis:
    """Measure a guide at each noise level. The network stays on the device, without experts.

    Args:
        backend: The diffusion model; its first stage's schedule is used.
        guide: An aimed guide. Its experts, if any, are measured beside the untouched network.
        images: (N, 3, H, W), uint8, images of the first stage, at least two.
        clean: (N, 3, H', W'), uint8, images of the last stage; None if there is one stage.
        classification: Whether the network's answers are logits of classes, (B, K).
        levels: Number of base timesteps, evenly spaced from 0 to T - 1.
        seed: Seed of the noise.
        num_experts: N for the proposed boundaries; None for `propose_number`.
        batch: Batch size; changes figures by rounding errors only.
        device: "auto", or a torch device.
        progress: Called after every level of a batch.

    UsageError if an argument, AssetError if the guide's experts cannot be used; PluginError if the
    guide or its loss is broken.
    """
    stage, place = backend.stages[0], find_device(device)
    schedule, length = stage.schedule, stage.schedule.num_timesteps
    check_readable(stage, "only images are diagnosed")
    timesteps = evenly_spaced(schedule, levels)
    if num_experts is not None:  # raises before anything is measured
        propose_boundaries([0], [0.0], length, num_experts)
    clean = images if clean is None else clean
    _check(images, clean, stage.image_shape, guide, batch)
    guide = guide.with_experts(backend, None)
    chosen, shown = guide.chosen, partial(predicted, backend)
    with contextlib.ExitStack() as stack:
        stack.enter_context(frozen([guide.model], place))
        experts = stack.enter_context(chosen.attached(guide.model)) if chosen else None
        attached = attrs.evolve(guide, experts=experts)
        measure = partial(
            _measure, seed=seed, batch=batch, device=place, shown=shown, progress=progress
        )
        before, found = measure(attached, schedule, timesteps, images, clean, classification)
        starts = tuple(p.start for p in experts.ranges.timesteps(schedule)[1:]) if experts else None
    curve = level_means(found[0, :, 0], timesteps, guide.loss)
    number = num_experts or propose_number(timesteps, curve, length)
    draws = bootstrap(len(images))
    readings = [tuple(_reading(f, draws, classification) for f in every) for every in found]
    return Diagnosis(
        images=len(images),
        seed=seed,
        schedule=schedule.name,
        schedule_length=length,
        timesteps=tuple(timesteps),
        log_snr=tuple(schedule.log_snr[timesteps].tolist()),
        clean_confidence=_mean(before[0], draws, "confidence") if classification else None,
        clean_gradient_norm=_mean(before[1], draws, "gradient_norm"),
        untouched=readings[0],
        experts=readings[1] if experts else None,
        starts=starts,
        proposal=tuple(propose_boundaries(timesteps, curve, length, number)),
    )


def _measure(
    guide: Guide,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    images: Tensor,
    clean: Tensor,
    classification: bool = False,
    *,
    seed: int,
    batch: int,
    device: torch.device,
    shown: Callable[[Tensor, Tensor], Tensor],
    progress: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Confidence and gradient norm of clean images, (2, N), and figures of the untouched network
    and the attached experts, if any, (1 or 2, L, 5, N); float64, not finite if missing. Experts of
    the predicted image are shown `shown`(x_t, t), clipped.
    """
    count = len(images)
    experts = guide.experts if isinstance(guide.experts, ExpertSet) else None
    readers = [attrs.evolve(guide, experts=None), *([guide] if experts else [])]
    before = torch.full((2, count), torch.nan, dtype=torch.float64)
    found = before.new_empty(len(readers), len(timesteps), len(_BOUNDS), count)
    done, total = 0, len(readers) * len(timesteps) * count
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        x0, seen = (scaled(pixels[rows].to(device)) for pixels in (images, clean))
        if experts:
            experts.activate(None)
        with torch.no_grad():
            teacher = guide.model(seen, NoiseLevel.clean(len(seen)))
        untouched = readers[0].rows(rows.start, rows.stop)
        g0 = _gradient(untouched, x0, NoiseLevel.clean(len(x0)))
        if classification:
            before[0, rows] = _logits(guide, teacher, len(x0)).softmax(1).amax(1)
        before[1, rows] = g0.norm(dim=1)
        for reader, values in zip(readers, found, strict=True):
            part = reader.rows(rows.start, rows.stop)
            for k, t in enumerate(timesteps):
                x_t, level = noised(x0, schedule, t, seed=seed, first=start)
                if reader.experts and reader.looks(level) == "detached":
                    x_t = shown(x_t, x_t.new_full((len(x_t),), t, dtype=torch.int64)).clamp(-1, 1)
                values[k, :, rows] = _figures(part, x_t, level, teacher, g0, classification)
                done += len(x0)
                if progress:
                    progress(Progress("measuring", done, total))
    return before, found


def _figures(
    guide: Guide, x_t: Tensor, level: NoiseLevel, teacher: Any, g0: Tensor, classification: bool
) -> Tensor:
    """Figures of B images, (5, B)."""
    count = len(x_t)
    with torch.no_grad():
        answer = guide.at(level)(x_t, level)
        apart = distances(guide.loss, answer, teacher, count)
    agrees = confidence = torch.full((count,), torch.nan, dtype=torch.float64)
    if classification:
        logits = _logits(guide, answer, count)
        confidence = logits.softmax(1).amax(1)
        same = logits.argmax(1) == _logits(guide, teacher, count).argmax(1)
        agrees = (same & confidence.isfinite()).double()
    g = _gradient(guide, x_t, level)
    norm, lengths = g.norm(dim=1), g.norm(dim=1) * g0.norm(dim=1)
    cosine = ((g * g0).sum(1) / lengths).clamp(-1.0, 1.0)
    cosine = cosine.where(lengths.isfinite(), torch.nan)  # 0 / 0 is nan already
    return torch.stack([apart, agrees, confidence, norm, cosine])


def _logits(guide: Guide, answer: Any, count: int) -> Tensor:
    """Logits of B images, (B, K), float64."""
    if not isinstance(answer, Tensor) or answer.shape[:-1] != (count,):
        what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        message = f"guide {guide.name!r} classifies {count} images as {what}"
        raise PluginError(message, hint=f"logits must be ({count}, K)")
    return answer.cpu().double()


def _gradient(guide: Guide, x: Tensor, level: NoiseLevel) -> Tensor:
    """(B, D), float64 on the CPU, since squares of small gradients underflow in float32."""
    if guide.target is None:
        return torch.full((len(x), 1), torch.nan, dtype=torch.float64)
    return guide.gradient(x, level).flatten(1).cpu().double()


def _reading(figures: Tensor, draws: Floats, classification: bool) -> Reading:
    """Figures of N images, (5, N), as means with intervals."""
    values = dict(zip(_BOUNDS, figures, strict=True))
    found: dict[str, Any] = {name: _mean(values[name], draws, name) for name in _BOUNDS}
    if classification:
        agrees = values["agreement"].numpy()
        found["agreement"] = share_interval(agrees, draws @ agrees / len(agrees))
    else:
        found |= {"agreement": None, "confidence": None}
    not_finite = int((~values["gradient_norm"].isfinite()).sum())
    return Reading(**found, not_finite=not_finite, compared=int(values["cosine"].isfinite().sum()))


def _mean(values: Tensor, draws: Floats, figure: str) -> Interval:
    """Mean of the finite ones of a figure's N values; NaN if there are none."""
    finite = values.isfinite()
    if not bool(finite.any()):
        return Interval(math.nan, math.nan, math.nan)
    kept = torch.where(finite, values, 0.0).numpy()
    with np.errstate(invalid="ignore"):  # a resample may have no finite values
        resampled = draws @ kept / (draws @ finite.double().numpy())
    return interval(kept.sum() / int(finite.sum()), resampled, *_BOUNDS[figure])


def _check(images: Tensor, clean: Tensor, shape: tuple[int, ...], guide: Guide, batch: int) -> None:
    count, rows = len(images), 0 if guide.target is None else len(guide.target.value)
    fit = images.shape[1:] == shape and clean.ndim == 4 and count == len(clean) > 1
    if not fit or {images.dtype, clean.dtype} != {torch.uint8}:
        given = [f"{tuple(pixels.shape)}, {pixels.dtype}" for pixels in (images, clean)]
        hint = f"give at least two of {shape}, torch.uint8, and as many clean ones"
        raise UsageError(f"images are {given[0]}, and clean ones {given[1]}", hint=hint)
    if rows not in (1, count):
        message = f"guide {guide.name!r} has {rows} targets for {count} images"
        raise UsageError(message, hint="give one target")
    if batch < 1:
        raise UsageError(f"batch must be a whole number from 1, not {batch}", hint="use 64, say")
