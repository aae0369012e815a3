r"""Walks along a diffusion process: from noise to images, through one stage or several, and back.

x_S ~ N(0, I);   for i = S - 1 ... 0:   x_i -> Prediction, clipped -> step -> x_{i-1}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, final

import attrs
import torch
from torch import Generator, Tensor

from ppap_framework.components import CascadedStage, Prediction, Stage
from ppap_framework.diffusion.process import Process, space_timesteps
from ppap_framework.diffusion.steps import Step, ddim_inversion_step, ddim_step
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel
from ppap_framework.runtime import generator


class Guidance(Protocol):
    """The guidance of a walk, such as `ppap_framework.guidance.EnergyGuidance`."""

    def __call__(
        self, x_t: Tensor, time: float, level: NoiseLevel, denoise: Callable[[Tensor], Prediction]
    ) -> tuple[Prediction, Tensor | None]:
        """`denoise(x_t)`, without a graph, and the guidance gradient g, (B, C, H, W), or None.

        Args:
            x_t: (B, C, H, W).
            time: t / T in [0, 1) of the whole batch; 0 is the least noisy.
            level: The B noise levels of x_t, all the same.
            denoise: The stage's denoiser at this timestep.
        """
        ...


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


@attrs.frozen(eq=False)
class State:
    """The state of a walk after a step.

    Attributes:
        index: Index in the process from which the step was taken.
        timestep: Base timestep of that index.
        x: (B, C, H, W), the new state.
        prediction: Prediction that `x` was made from; its x0 previews the final images.
    """

    index: int
    timestep: int
    x: Tensor
    prediction: Prediction


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
    clip: bool = True,
    denoised_fn: Callable[[Tensor], Tensor] | None = None,
    indices: Iterable[int] | None = None,
) -> Iterator[State]:
    """Walk from noise to images, one state for each of the process's S timesteps.

    Args:
        stage: The stage, whose denoiser is called at base timesteps.
        process: A process on the stage's schedule.
        x: (B, C, H, W), float32, the initial noise, on the device to compute on.
        noise: Draws (B, C, H, W) for a step; a `NoiseSource`, whose first draw was `x`.
        condition: Output of the backend's `encode` for these B images.
        step: `ddim_step`, `partial(ddim_step, eta=...)`, `ddpm_step` or another.
        guidance: The guidance, or None.
        clip: Clamp each x_0 to [-1, 1] before it is used.
        denoised_fn: Changes each x_0, (B, C, H, W), before it is clamped.
        indices: The indices to step from, in order; by default S - 1 to 0.
    """
    for index in reversed(range(len(process))) if indices is None else indices:
        drawn = noise(tuple(x.shape))
        prediction, gradient = _look(stage, process, index, x, condition, guidance)
        if denoised_fn is not None:
            prediction = prediction.with_x0(denoised_fn(prediction.x0))
        if clip:
            prediction = prediction.with_x0(prediction.x0.clamp(-1.0, 1.0))
        x, prediction = step(process, index, prediction, drawn, gradient)
        yield State(index, process.timesteps[index], x, prediction)


def inversion(stage: Stage, process: Process, x: Tensor, **settings: Any) -> Iterator[State]:
    """Walk from images to noise by DDIM inversion, one state for each but the last timestep.

    From the last x, `trajectory` with eta 0 and the same process leads back to the images.

    `x` holds the images, (B, C, H, W), float32, as the state at the first kept timestep; `settings`
    are keyword arguments of `trajectory`. UsageError if the process has a single timestep.
    """
    if len(process) < 2:
        raise UsageError("DDIM inversion needs at least two steps", hint="use more steps")
    settings |= {"step": ddim_inversion_step, "indices": range(len(process) - 1)}
    return trajectory(stage, process, x, torch.zeros, **settings)


def _look(
    stage: Stage, process: Process, index: int, x: Tensor, condition: Any, guidance: Guidance | None
) -> tuple[Prediction, Tensor | None]:
    """The prediction and the guidance gradient at an index of a process."""
    timestep = process.timesteps[index]
    t = torch.full((len(x),), timestep, dtype=torch.int64, device=x.device)

    def denoise(x_t: Tensor) -> Prediction:
        return stage.denoise(x_t, t, condition)

    if guidance is None:
        return denoise(x), None
    time = timestep / process.schedule.num_timesteps
    return guidance(x, time, process.level(index, len(x)), denoise)


@final
@attrs.frozen(eq=False)
class Continuation:
    """A later stage, and its reverse process over the timesteps that its sampling keeps."""

    stage: CascadedStage
    process: Process

    @classmethod
    def of(cls, stage: CascadedStage) -> Continuation:
        """The stage with its own sampling; UsageError if its schedule cannot be respaced so."""
        kept = space_timesteps(stage.schedule.num_timesteps, stage.sampling.respacing)
        return cls(stage, Process(stage.schedule, kept, stage.variance))


def cascade(
    later: Sequence[Continuation],
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
        later: The stages, each of which goes on from the images of the one before it.
        images: Finished images of the first stage, (B, 3, H, W) in [-1, 1].
        condition: Output of the backend's `encode` for these B images.
        seed: Seed of the noise; see `NoiseSource`, also for `start`.
        start: Number of the first image.
        watch: Called after every step with the number of images.
        ready: Called before each stage begins.
    """
    drawn = []
    for number, following in enumerate(later, start=1):
        stage, sampling = following.stage, following.stage.sampling
        if ready:
            ready(stage)
        noise = NoiseSource(seed, start, number)
        x = sampling.temperature * noise((len(images), *stage.image_shape)).to(images.device)
        given = stage.conditioned(condition, images)
        step = partial(ddim_step, eta=sampling.eta)
        for state in trajectory(stage, following.process, x, noise, condition=given, step=step):
            x = state.x
            if watch:
                watch(len(images))
        images = x.clamp(-1.0, 1.0)
        drawn.append(images)
    return drawn
