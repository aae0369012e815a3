"""Diagnosis of a network, off-the-shelf or with experts, without labels; figures as in `measure`.

An off-the-shelf network has seen no noise, so its gradients mislead at most noise levels: the
motivation for experts (Go et al. 2023, arXiv 2212.05973).
"""

from __future__ import annotations

import contextlib
import math

import attrs
import numpy as np
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend
from ppap_framework.diagnosis.intervals import (
    Floats,
    Interval,
    bootstrap,
    interval,
    share_interval,
)
from ppap_framework.diagnosis.measure import FIGURES, evenly_spaced, level_means, measure
from ppap_framework.diagnosis.proposal import propose_boundaries, propose_number
from ppap_framework.diagnosis.record import Diagnosis, Reading
from ppap_framework.errors import UsageError
from ppap_framework.experts import choose_experts
from ppap_framework.guidance import Guide
from ppap_framework.runtime import Watch, find_device, frozen, isolated


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
    """Measure a guide at each noise level. Other arguments are those of `measure`.

    The network stays on the device, without experts.

    Args:
        backend: The diffusion model; its first stage's schedule is used.
        guide: An aimed guide. Its experts, if any, are measured beside the untouched network.
        images: At least two images.
        levels: Number of base timesteps, evenly spaced from 0 to T - 1.
        num_experts: N for the proposed boundaries; None for `propose_number`.
        device: "auto", or a torch device.

    Raises:
        UsageError: If an argument cannot be used.
        AssetError: If the guide's experts cannot be used.
        PluginError: If the guide or its loss is broken.
    """
    schedule, place = backend.stages[0].schedule, find_device(device)
    length, timesteps = schedule.num_timesteps, evenly_spaced(schedule, levels)
    if num_experts is not None:  # raises before anything is measured
        propose_boundaries([0], [0.0], length, num_experts)
    _check(images, images if clean is None else clean, backend, guide, batch)
    chosen = choose_experts(
        guide.experts,
        guide.name,
        guide.model,
        backend,
        noise_aware=guide.noise_aware,
        allow_mismatch=guide.allow_mismatch,
        offline=guide.offline,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(frozen([guide.model], place))
        experts = stack.enter_context(chosen.attached(guide.model)) if chosen else None
        before, found = measure(
            attrs.evolve(guide, experts=experts),
            schedule,
            timesteps,
            images,
            clean,
            classification=classification,
            seed=seed,
            batch=batch,
            device=place,
            progress=progress,
        )
        owned = experts.ranges.timesteps(schedule) if experts else ()
    curve = level_means(found[0, :, 0], timesteps, guide.loss)
    number = num_experts or propose_number(timesteps, curve, length)
    draws = bootstrap(len(images))
    untouched, *others = (
        tuple(_reading(figures, draws, classification) for figures in levels_) for levels_ in found
    )
    return Diagnosis(
        images=len(images),
        seed=seed,
        schedule=schedule.name,
        schedule_length=length,
        timesteps=tuple(timesteps),
        log_snr=tuple(schedule.log_snr[timesteps].tolist()),
        clean_confidence=_mean(before[0], draws, 0.0, 1.0) if classification else None,
        clean_gradient_norm=_mean(before[1], draws, 0.0),
        untouched=untouched,
        experts=others[0] if others else None,
        starts=tuple(part.start for part in owned[1:]) if others else None,
        proposal=tuple(propose_boundaries(timesteps, curve, length, number)),
    )


def _reading(figures: Tensor, draws: Floats, classification: bool) -> Reading:
    """`FIGURES` of N images, (5, N), as means with intervals."""
    named = dict(zip(FIGURES, figures, strict=True))
    agrees = named["agreement"].numpy()
    share = share_interval(agrees, draws @ agrees / len(agrees)) if classification else None
    return Reading(
        disagreement=_mean(named["disagreement"], draws),
        agreement=share,
        confidence=_mean(named["confidence"], draws, 0.0, 1.0) if classification else None,
        gradient_norm=_mean(named["gradient_norm"], draws, 0.0),
        cosine=_mean(named["cosine"], draws, -1.0, 1.0),
        not_finite=int((~named["gradient_norm"].isfinite()).sum()),
        compared=int(named["cosine"].isfinite().sum()),
    )


def _mean(
    values: Tensor, draws: Floats, least: float = -math.inf, most: float = math.inf
) -> Interval:
    """Mean of the finite ones of N values; NaN if there are none."""
    finite = values.isfinite()
    if not bool(finite.any()):
        return Interval(math.nan, math.nan, math.nan)
    kept = torch.where(finite, values, 0.0).numpy()
    with np.errstate(invalid="ignore"):  # a resample may have no finite values
        resampled = draws @ kept / (draws @ finite.double().numpy())
    return interval(kept.sum() / int(finite.sum()), resampled, least, most)


def _check(
    images: Tensor, clean: Tensor, backend: DiffusionBackend, guide: Guide, batch: int
) -> None:
    stage = backend.stages[0]
    for what, pixels, shape in (
        ("images", images, stage.image_shape),
        ("clean images", clean, tuple(clean.shape[1:])),
    ):
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != shape or pixels.ndim != 4:
            raise UsageError(
                f"{what} are {tuple(pixels.shape)}, {pixels.dtype}",
                hint=f"stage {stage.name!r} draws (N, {', '.join(map(str, shape))}), torch.uint8",
            )
    if len(images) < 2 or len(clean) != len(images):
        raise UsageError(
            f"there are {len(images)} images, and {len(clean)} for the teacher",
            hint="give the same number of both, two at least",
        )
    rows = 0 if guide.target is None else guide.target.value.shape[0]
    if rows not in (1, len(images)):
        raise UsageError(
            f"guide {guide.name!r} has {rows} targets for {len(images)} images",
            hint="give one target",
        )
    if batch < 1:
        raise UsageError(f"batch must be a whole number from 1, not {batch}", hint="use 64, say")
