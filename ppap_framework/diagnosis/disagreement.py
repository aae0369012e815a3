r"""How far a network's answers to noised images are from its answers to the clean ones.

    D(t) = mean over i of L(f(x_t^i), f(x_0^i)),    x_t^i = alpha_t x_0^i + sigma_t eps(seed, i, t)

with f the untouched network and L its loss's `transfer`: what experts are for begins with a
network that understands clean images alone (Go et al. 2023, arXiv 2212.05973).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.noise import NoiseLevel, NoiseSchedule

__all__ = [
    "as_seen",
    "clean_level",
    "differences",
    "disagreement",
    "evenly_spaced",
    "level_means",
    "noised",
]


def evenly_spaced(schedule: NoiseSchedule, levels: int) -> list[int]:
    """Base timesteps from 0 to T - 1, both included, as evenly as whole numbers allow.

    Args:
        schedule: Of T timesteps.
        levels: How many, from 2 to T.

    Raises:
        UsageError: For any other number.
    """
    last = schedule.num_timesteps - 1
    if not 2 <= levels <= last + 1:
        raise UsageError(
            f"schedule {schedule.name!r} of {last + 1} timesteps cannot be looked at in {levels} "
            "levels",
            hint=f"use a number from 2 to {last + 1}",
        )
    gaps = levels - 1
    return [(2 * k * last + gaps) // (2 * gaps) for k in range(levels)]  # rounded, halves up


def as_seen(pixels: Tensor) -> Tensor:
    """Images of (B, 3, H, W), uint8, as networks see them: float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def clean_level(batch: int) -> NoiseLevel:
    """The level of `batch` images without noise."""
    return NoiseLevel(torch.full((batch,), torch.inf, dtype=torch.float64))


def noised(
    images: Tensor, schedule: NoiseSchedule, timestep: int, *, seed: int = 0, first: int = 0
) -> tuple[Tensor, NoiseLevel]:
    """Images at a base timestep, and their level. Noise of image i is that of (seed, i, timestep),
    whatever the batch and the device, and none that an image was drawn from.

    Args:
        images: (B, 3, H, W), float, clean.
        schedule: That the timestep is of.
        timestep: The same for all.
        seed: Of the noise.
        first: The number i of the first image; the others follow.

    Returns:
        (B, 3, H, W), in the variance-preserving form that guides look at, and B levels.
    """
    shape = tuple(images.shape[1:])
    noise = [_noise(f"{seed}/{first + row}/{timestep}", shape) for row in range(len(images))]
    t = torch.full((len(images),), timestep)
    return schedule.add_noise(images, t, torch.stack(noise).to(images.device)), schedule.level(t)


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
    """D(t), for `propose_boundaries`.

    Args:
        model: The untouched network, in evaluation mode, where the images are.
        loss: Whose `transfer` compares answers.
        schedule: Of the stage whose images are noised.
        timesteps: L of them, base timesteps of the schedule.
        images: (N, 3, H, W), uint8, to which noise is added.
        clean: (N, 3, H', W'), uint8: the same pictures as the last stage draws them, which the
            network looks at without noise; None where there is one stage.
        seed: Of the noise.
        batch: How many images are looked at at once; changes D by rounding errors only.

    Returns:
        L numbers: means over the images for which the loss is finite.

    Raises:
        PluginError: Where it is finite for none, or not of one value for each image.
    """
    clean = images if clean is None else clean
    values = torch.empty(len(timesteps), len(images), dtype=torch.float64)
    for start in range(0, len(images), batch):
        x0, seen = as_seen(images[start : start + batch]), as_seen(clean[start : start + batch])
        teacher = model(seen, clean_level(len(seen)))
        for k, t in enumerate(timesteps):
            x_t, level = noised(x0, schedule, t, seed=seed, first=start)
            apart = differences(loss, model(x_t, level), teacher, len(x_t))
            values[k, start : start + batch] = apart
    return level_means(values, timesteps, loss)


def differences(loss: TaskLoss, student: object, teacher: object, batch: int) -> Tensor:
    """The loss's `transfer` of B answers, (B,), float64, on the CPU.

    Raises:
        PluginError: Where it is not of one value for each image.
    """
    found = loss.transfer(student, teacher)
    if found.shape != (batch,):
        raise PluginError(
            f"{type(loss).__name__}.transfer of {batch} images has shape {tuple(found.shape)}",
            hint=f"it must be ({batch},), one for each image",
        )
    return found.detach().cpu().double()


def level_means(values: Tensor, timesteps: Sequence[int], loss: TaskLoss) -> list[float]:
    """The mean at each of L levels of values (L, N), over the images whose value is finite.

    Raises:
        PluginError: Where none is.
    """
    finite = values.isfinite()
    for t, some in zip(timesteps, finite.any(1).tolist(), strict=True):
        if not some:
            raise PluginError(
                f"{type(loss).__name__}.transfer is finite for no image at timestep {t}",
                hint="the network or its loss is broken",
            )
    means: list[float] = (torch.where(finite, values, 0.0).sum(1) / finite.sum(1)).tolist()
    return means


def _noise(words: str, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(shape, generator=generator)
