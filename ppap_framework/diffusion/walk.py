r"""Walks along a diffusion process: from noise to images, through one stage or several.

x_S ~ N(0, I);   for i = S - 1 ... 0:   x_i -> Prediction, clipped -> step -> x_{i-1}

Guidance g = -s dE/dx, a gradient of a log-likelihood at x_i, enters a step in one of two ways:

    mean shift:  mu + Sigma g                 (Dhariwal and Nichol 2021, arXiv 2105.05233, alg. 1)
    score:       eps - sqrt(1 - abar_i) g     (the same, alg. 2)

The x_0 that guidance moved is not clipped again; `shifted` bounds its shift if alpha_i is nearly 0.

Known pixels of a picture y are replaced after each step (RePaint, Lugmayr et al. 2022, arXiv
2201.09865, eq. 8) by those of sqrt(abar_{i-1}) y + sqrt(1 - abar_{i-1}) eps. The others only fit
them if parts of the walk are repeated: see `repeated`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import attrs
import torch
from torch import Generator, Tensor

from ppap_framework.components import CascadedStage, Prediction, Stage
from ppap_framework.diffusion.process import Process, at_index, times
from ppap_framework.errors import UsageError
from ppap_framework.known import Known
from ppap_framework.noise import NoiseLevel
from ppap_framework.runtime import generator

_REACH = 2.0

Step: TypeAlias = Callable[
    [Process, int, Prediction, Tensor, Tensor | None], tuple[Tensor, Prediction]
]
"""A step from tau_i to tau_{i-1}, such as `ddpm_step` or `ddim_step`.

Its arguments are the reverse process; the index i, in [0, S); the prediction at x_i, already
clipped; standard normal noise, (B, C, H, W), on any device; and g, (B, C, H, W), or None for no
guidance. It returns x_{i-1}, (B, C, H, W), and the prediction that it was made from.
"""


def ddpm_step(
    process: Process, index: int, prediction: Prediction, noise: Tensor, gradient: Tensor | None, /
) -> tuple[Tensor, Prediction]:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, alg. 2), guided by a mean shift; the
    returned prediction stays unguided. See `Step`.
    """
    x_t = prediction.x_t
    x = process.posterior_mean(prediction.x0, x_t, index)
    variance, log_variance = process.reverse_variance(index, prediction.variance, x_t)
    if gradient is not None:
        x = x + variance * gradient
    if index > 0:
        x = x + torch.exp(0.5 * log_variance) * noise.to(x)
    return x, prediction


def ddim_step(
    process: Process,
    index: int,
    prediction: Prediction,
    noise: Tensor,
    gradient: Tensor | None,
    /,
    *,
    eta: float = 0.0,
) -> tuple[Tensor, Prediction]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), guided through the score.

    See `Step`. `eta` is from 0, else UsageError: 0 is deterministic, 1 adds noise of the posterior
    variance, and more adds more, at most all that x_{i-1} has, so that eps is drawn anew.
    """
    if not 0.0 <= eta < math.inf:
        raise UsageError(f"eta must be a number from 0, not {eta}")
    x_t = prediction.x_t
    abar = at_index(process.alphas_cumprod, index, x_t)
    abar_prev = at_index(process.alphas_cumprod_prev, index, x_t)
    sigma = eta * ((1.0 - abar_prev) / (1.0 - abar)).sqrt() * (1.0 - abar / abar_prev).sqrt()
    sigma = torch.minimum(sigma, (1.0 - abar_prev).sqrt())
    direction = (1.0 - abar_prev - sigma**2).clamp_min(0.0).sqrt()
    prediction = shifted(prediction, gradient, abar, abar_prev.sqrt(), direction)
    x = abar_prev.sqrt() * prediction.x0 + direction * prediction.eps
    if sigma > 0.0:
        x = x + sigma * noise.to(x)
    return x, prediction


def shifted(
    prediction: Prediction, g: Tensor | None, abar: Tensor, alpha_to: Tensor, sigma_to: Tensor
) -> Prediction:
    """The prediction at abar_i with its score shifted by g, for a step to alpha_to x_0 + sigma_to
    eps; constants are 0-dimensional, of the prediction's dtype.

    Such a step moves the state by

        alpha_to dx_0 + sigma_to deps = (alpha_to sigma_i / alpha_i - sigma_to) sigma_i g

    The factor is about 1 or less on evenly spaced timesteps, but unbounded as alpha_i falls to 0.
    If it exceeds `_REACH`, g is reduced such that the factor is 1, as on evenly spaced timesteps.
    """
    if g is None:
        return prediction
    alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
    reach = alpha_to * sigma - alpha * sigma_to  # alpha_i times the factor
    if reach > _REACH * alpha:
        return prediction.with_x0(prediction.x0 + sigma**2 / reach * g)
    # Under strong guidance x_0 and eps are large and nearly cancel, so the order of arithmetic
    # matters. As in the published samplers, eps is computed from x_0 again.
    return prediction.with_x0(prediction.with_eps(prediction.eps - sigma * g).x0)


class Guidance(Protocol):
    """The guidance of a walk, such as `ppap_framework.guidance.EnergyGuidance`."""

    def __call__(
        self, x_t: Tensor, time: float, level: NoiseLevel, denoise: Callable[[Tensor], Prediction]
    ) -> tuple[Prediction, Tensor | None]:
        """`denoise(x_t)`, without a graph, and the guidance gradient g, (B, C, H, W), or None.

        `time` is t / T in [0, 1) of the whole batch, 0 is the least noisy; `level` holds the B
        noise levels, all the same; `denoise` is the stage's denoiser at this timestep.
        """


@attrs.frozen(eq=False)
class NoiseSource:
    """One stream of noise for each image: the initial noise first, then a draw for each step.

    It depends on the seed and the image alone, never on the batch or the device: streams are drawn
    on the CPU, and each step draws, even if it needs no noise.

    Attributes:
        seed: Seed of the run.
        start: Number i of the batch's first image; its stream comes from (seed, i).
        stage: Number of the backend's stage; each stage has its own streams.
    """

    seed: int
    start: int = 0
    stage: int = 0
    _streams: dict[int, Generator] = attrs.field(factory=dict, init=False)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise, (B, C, H, W), float32, on the CPU, for the batch's B images."""
        rows = []
        for image in range(self.start, self.start + shape[0]):
            if image not in self._streams:
                key = (self.seed, image, self.stage) if self.stage else (self.seed, image)
                self._streams[image] = generator(*key)
            stream = self._streams[image]
            rows.append(torch.randn(shape[1:], generator=stream, dtype=torch.float32, device="cpu"))
        return torch.stack(rows)


@torch.no_grad()
def trajectory(
    stage: Stage,
    process: Process,
    x: Tensor,
    noise: Callable[[tuple[int, ...]], Tensor],
    *,
    condition: Any = None,
    step: Step = ddim_step,
    guidance: Guidance | None = None,
    indices: Iterable[int] | None = None,
    known: Known | None = None,
) -> Iterator[tuple[Tensor, Prediction]]:
    """Walk from noise to images; after a step from each of the process's S timesteps, yield the new
    state, (B, C, H, W), and the prediction that it was made from, whose x0 previews the images.

    Args:
        stage: The stage, whose denoiser is called at base timesteps.
        process: A process on the stage's schedule.
        x: (B, C, H, W), float32, the initial noise, on the device to compute on.
        noise: Draws (B, C, H, W) for a step; a `NoiseSource`, whose first draw was `x`.
        condition: Output of the backend's `encode` for these B images.
        step: `ddim_step`, `partial(ddim_step, eta=...)`, `ddpm_step` or another.
        indices: The indices to step from, in order; by default S - 1 to 0.
        known: Pixels of x_0 to keep. If the next of `indices` is noisier than where a step has led,
            noise is added, x_j = sqrt(abar_j / abar_i) x_i + sqrt(1 - abar_j / abar_i) eps.
    """
    (abar, abar_prev), last = (process.alphas_cumprod, process.alphas_cumprod_prev), None
    for index in reversed(range(len(process))) if indices is None else indices:
        if known is not None and last is not None and index >= last:
            x = noised(x, noise(tuple(x.shape)), abar[index] / abar_prev[last])
        drawn, last = noise(tuple(x.shape)), index
        timestep = process.timesteps[index]
        t = times([timestep] * len(x), x.device)

        def denoise(x_t: Tensor, t: Tensor = t) -> Prediction:
            return stage.denoise(x_t, t, condition)

        if guidance is None:
            prediction, gradient = denoise(x), None
        else:
            time, level = timestep / process.schedule.num_timesteps, process.level(index, len(x))
            prediction, gradient = guidance(x, time, level, denoise)
        prediction = prediction.with_x0(stage.clip(prediction.x0))
        x, prediction = step(process, index, prediction, drawn, gradient)
        if known is not None:
            eps = noise(tuple(x.shape))
            x = known._replace(x0=noised(known.x0, eps, abar_prev[index])).kept(x)
        yield x, prediction


def noised(x: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """sqrt(abar) x + sqrt(1 - abar) eps of (B, C, H, W) or (1, C, H, W), with abar a number."""
    abar = abar.to(x.dtype)
    return abar.sqrt() * x + (1.0 - abar).sqrt() * noise.to(x)


def repeated(steps: int, resample: int, jump: int) -> tuple[int, ...]:
    """Indices that walk each part of `jump` steps `resample` times (RePaint, section 4.2)."""
    return tuple(
        index
        for low in reversed(range(0, steps, jump))
        for _ in range(resample)
        for index in reversed(range(low, min(low + jump, steps)))
    )


def cascade(
    later: Sequence[tuple[CascadedStage, Process]],
    images: Tensor,
    condition: Any,
    *,
    seed: int,
    start: int = 0,
    watch: Callable[[int], None] | None = None,
    ready: Callable[[Stage], None] | None = None,
) -> list[Tensor]:
    """Images of each later stage, (B, 3, H', W') in [-1, 1], drawn in order.

    Args:
        later: The stages, each of which goes on from the images of the one before it, with their
            processes, such as `Process.following`.
        images: Finished images of the first stage, (B, 3, H, W) in [-1, 1].
        condition: As in `trajectory`; `seed` and `start` are as in `NoiseSource`.
        watch: Called after every step with the number of images.
        ready: Called before each stage begins.
    """
    drawn = []
    for number, (stage, process) in enumerate(later, start=1):
        if ready:
            ready(stage)
        noise = NoiseSource(seed, start, number)
        x = stage.sampling.temperature * noise((len(images), *stage.shape)).to(images.device)
        given = stage.conditioned(condition, images)
        step = partial(ddim_step, eta=stage.sampling.eta)
        for state, _ in trajectory(stage, process, x, noise, condition=given, step=step):
            x = state
            if watch:
                watch(len(images))
        images = stage.decode(x).clamp(-1.0, 1.0)
        drawn.append(images)
    return drawn
