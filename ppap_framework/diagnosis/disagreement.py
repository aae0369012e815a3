r"""How far a network's answers to noised images lie from its answers to the clean ones.

With the untouched network f, its loss's `transfer` L, and the mean over images x_0 (Go et al. 2023,
arXiv 2212.05973, motivate experts by it):

    x_t = alpha_t x_0 + sigma_t eps(seed, i, t)
    D(t) = mean L(f(x_t), f(x_0))

If a backend has several stages, x_t belongs to the first one's image, and f reads the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.noise import NoiseLevel, NoiseSchedule
from ppap_framework.pixels import scaled
from ppap_framework.runtime import generator


@torch.no_grad()
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
    """D(t) at L base timesteps of the first stage's schedule, for `propose_boundaries`.

    `images`, (N, 3, H, W), uint8, are those of the first stage, `clean` those of the last one; None
    if there is one stage. The model is in evaluation mode, on their device. PluginError if
    `loss.transfer` is finite for no image, or not one value for each.
    """
    values = torch.empty(len(timesteps), len(images), dtype=torch.float64)
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        x0, seen = (scaled(x[rows]) for x in (images, images if clean is None else clean))
        teacher = model(seen, NoiseLevel.clean(len(seen)))
        for k, t in enumerate(timesteps):
            answer = model(*noised(x0, schedule, t, seed=seed, first=start))
            values[k, rows] = distances(loss, answer, teacher, len(x0))
    return level_means(values, timesteps, loss)


def distances(loss: TaskLoss, answer: Any, teacher: Any, count: int) -> Tensor:
    """`loss.transfer` of B = `count` images, (B,), float64 on the CPU; PluginError if it is not."""
    apart = loss.transfer(answer, teacher)
    if apart.shape != (count,):
        what = f"{type(loss).__name__}.transfer of {count} images has shape"
        raise PluginError(f"{what} {tuple(apart.shape)}", hint=f"it must be ({count},)")
    return apart.cpu().double()


def level_means(values: Tensor, timesteps: Sequence[int], loss: TaskLoss) -> list[float]:
    """Means of finite values (L, N) at each of L timesteps; PluginError if there are none."""
    finite = values.isfinite()
    if not bool(finite.any(1).all()):
        t = timesteps[int(finite.any(1).int().argmin())]
        message = f"{type(loss).__name__}.transfer is finite for no image at timestep {t}"
        raise PluginError(message, hint="the network or its loss is broken")
    return (torch.where(finite, values, 0.0).sum(1) / finite.sum(1)).tolist()


def evenly_spaced(schedule: NoiseSchedule, levels: int) -> list[int]:
    """`levels` base timesteps, evenly spaced from 0 to T - 1; UsageError unless from 2 to T."""
    last, gaps = schedule.num_timesteps - 1, levels - 1
    if not 1 <= gaps <= last:
        message = f"{last + 1} timesteps cannot be measured at {levels} levels"
        raise UsageError(message, hint=f"use a number from 2 to {last + 1}")
    return [(2 * k * last + gaps) // (2 * gaps) for k in range(levels)]  # rounded, halves up


def noised(
    images: Tensor, schedule: NoiseSchedule, timestep: int, *, seed: int = 0, first: int = 0
) -> tuple[Tensor, NoiseLevel]:
    """Noisy images (B, 3, H, W), in the variance-preserving form, of clean ones at a base timestep,
    and their B levels. The noise of image i is a function of (seed, i, timestep) alone, and never
    that of sampling; `first` is the i of the first image.
    """
    batch, *shape = images.shape
    draw = partial(torch.randn, shape, dtype=torch.float32, device="cpu")
    seeds = (generator("diagnosis", seed, first + row, timestep) for row in range(batch))
    noise = torch.stack([draw(generator=own) for own in seeds])
    t = torch.full((batch,), timestep, device="cpu")
    return schedule.add_noise(images, t, noise.to(images.device)), schedule.level(t)
