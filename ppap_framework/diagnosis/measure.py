r"""Figures that compare a guide's answers with and without noise.

With the guide's network f, its energy E with target y, and the same network without experts, f_0,
for every image x_0 and level:

    x_t = alpha_t x_0 + sigma_t eps(seed, i, t)
    disagreement    L(f(x_t), f_0(x_0)), L being the loss's `transfer`
    agreement       whether argmax f(x_t) = argmax f_0(x_0)         (classification)
    confidence      max softmax f(x_t)                              (classification)
    gradient norm   |g_t|,             g_t = dE(f(x_t), y) / dx_t
    cosine          g_t . g_0 / (|g_t| |g_0|),  g_0 = dE(f_0(x_0), y) / dx_0

g_t is the gradient that guidance subtracts, without the scale. If its cosine is 0, it is unrelated
to the image's content. Experts lower the mean disagreement D(t) of the untouched network (Go et al.
2023, arXiv 2212.05973).

If a backend has several stages, x_t and g_0 belong to the first one's image, and f_0 reads the last
one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.experts import ExpertSet
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel, NoiseSchedule
from ppap_framework.pixels import scaled
from ppap_framework.runtime import Progress, Watch, generator

FIGURES = ("disagreement", "agreement", "confidence", "gradient_norm", "cosine")


def evenly_spaced(schedule: NoiseSchedule, levels: int) -> list[int]:
    """Evenly spaced base timesteps, rounded, including 0 and T - 1.

    Raises:
        UsageError: If `levels` is not from 2 to T.
    """
    last = schedule.num_timesteps - 1
    if not 2 <= levels <= last + 1:
        raise UsageError(
            f"schedule {schedule.name!r} of {last + 1} timesteps cannot be measured at {levels} "
            "levels",
            hint=f"use a number from 2 to {last + 1}",
        )
    gaps = levels - 1
    return [(2 * k * last + gaps) // (2 * gaps) for k in range(levels)]  # rounded, halves up


def noised(
    images: Tensor, schedule: NoiseSchedule, timestep: int, *, seed: int = 0, first: int = 0
) -> tuple[Tensor, NoiseLevel]:
    """Noisy images at a base timestep, and their levels.

    The noise of image i is a function of (seed, i, timestep) alone, and never that of sampling.

    Args:
        images: (B, 3, H, W), float, clean.
        schedule: The schedule of the timestep.
        timestep: A timestep for all images.
        seed: Seed of the noise.
        first: Index i of the first image; the others follow.

    Returns:
        (B, 3, H, W), in the variance-preserving form that guides read, and B levels.
    """
    batch, *shape = images.shape
    noise = torch.stack(
        [
            torch.randn(
                shape,
                generator=generator("diagnosis", seed, first + row, timestep),
                dtype=torch.float32,
                device="cpu",
            )
            for row in range(batch)
        ]
    )
    t = torch.full((batch,), timestep, device="cpu")
    return schedule.add_noise(images, t, noise.to(images.device)), schedule.level(t)


def disagreement(
    model: GuidanceModel,
    loss: TaskLoss,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    images: Tensor,
    clean: Tensor | None = None,
    *,
    seed: int = 0,
    batch: int = 64,
) -> list[float]:
    """D(t) of a network at L timesteps, for `propose_boundaries`.

    Args:
        model: The untouched network, in evaluation mode, on the images' device.
        loss: A loss whose `transfer` compares answers. Other arguments are those of `measure`.

    Raises:
        PluginError: If the loss is finite for no image, or not one value for each.
    """
    guide = Guide(name=type(model).__name__, model=model, loss=loss, target=None)
    _, found = measure(
        guide, schedule, timesteps, images, clean, seed=seed, batch=batch, device=images.device
    )
    return level_means(found[0, :, 0], timesteps, loss)


def level_means(values: Tensor, timesteps: Sequence[int], loss: TaskLoss) -> list[float]:
    """Means of finite values (L, N) at each of L timesteps; PluginError if there are none."""
    finite = values.isfinite()
    for t, some in zip(timesteps, finite.any(1).tolist(), strict=True):
        if not some:
            raise PluginError(
                f"{type(loss).__name__}.transfer is finite for no image at timestep {t}",
                hint="the network or its loss is broken",
            )
    means: list[float] = (torch.where(finite, values, 0.0).sum(1) / finite.sum(1)).tolist()
    return means


def measure(
    guide: Guide,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    images: Tensor,
    clean: Tensor | None = None,
    *,
    classification: bool = False,
    seed: int = 0,
    batch: int = 64,
    device: torch.device,
    progress: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Measure the figures of every image at every level.

    Args:
        guide: A guide whose experts, if any, are attached. Without a target, gradients are NaN.
        schedule: Schedule of the first stage.
        timesteps: L of its base timesteps.
        images: (N, 3, H, W), uint8, images of the first stage.
        clean: (N, 3, H', W'), uint8, images of the last stage; None if there is one stage.
        classification: Whether the network's answers are logits of classes, (B, K).
        seed: Seed of the noise.
        batch: Batch size; changes figures by rounding errors only.
        device: The networks' device.
        progress: Called after every level of a batch.

    Returns:
        Confidence and gradient norm of clean images, (2, N), and `FIGURES` of the untouched network
        and the experts, if any, (1 or 2, L, 5, N); float64, not finite for missing figures.

    Raises:
        PluginError: If the network or its loss is broken.
    """
    clean = images if clean is None else clean
    count, experts = len(images), guide.experts
    readers = [attrs.evolve(guide, experts=None)]
    if isinstance(experts, ExpertSet):
        readers.append(guide)
    before = torch.full((2, count), torch.nan, dtype=torch.float64)
    found = before.new_empty(len(readers), len(timesteps), len(FIGURES), count)
    done, total = 0, len(readers) * len(timesteps) * count
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        x0, seen = (scaled(pixels[rows].to(device)) for pixels in (images, clean))
        if isinstance(experts, ExpertSet):
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
                values[k, :, rows] = _figures(part, x_t, level, teacher, g0, classification)
                done += len(x0)
                if progress:
                    progress(Progress("measuring", done, total))
    return before, found


def _figures(
    guide: Guide, x_t: Tensor, level: NoiseLevel, teacher: Any, g0: Tensor, classification: bool
) -> Tensor:
    """`FIGURES` of B images, (5, B)."""
    count = len(x_t)
    with torch.no_grad():
        answer = guide.at(level)(x_t, level)
        apart = guide.loss.transfer(answer, teacher)
    if apart.shape != (count,):
        raise PluginError(
            f"{type(guide.loss).__name__}.transfer of {count} images has shape "
            f"{tuple(apart.shape)}",
            hint=f"it must be ({count},), one for each image",
        )
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
    return torch.stack([apart.cpu().double(), agrees, confidence, norm, cosine])


def _logits(guide: Guide, answer: Any, count: int) -> Tensor:
    """Logits of B images, (B, K), float64."""
    if not isinstance(answer, Tensor) or answer.shape[:-1] != (count,):
        what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise PluginError(
            f"guide {guide.name!r} classifies {count} images as {what}",
            hint=f"logits must be ({count}, K), K classes for each image",
        )
    return answer.cpu().double()


def _gradient(guide: Guide, x: Tensor, level: NoiseLevel) -> Tensor:
    """(B, D), float64 on the CPU, since squares of small gradients underflow in float32."""
    if guide.target is None:
        return torch.full((len(x), 1), torch.nan, dtype=torch.float64)
    return guide.gradient(x, level).flatten(1).cpu().double()
