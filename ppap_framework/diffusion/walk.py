r"""Walks along a diffusion process: from noise to images, and back.

x_S ~ N(0, I);   for i = S - 1 ... 0:   x_i -> Prediction, clipped -> step -> x_{i-1}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from ppap_framework.components import Prediction, Stage
from ppap_framework.diffusion.process import Process
from ppap_framework.diffusion.steps import Step, ddim_inversion_step, ddim_step
from ppap_framework.errors import UsageError
from ppap_framework.noise import NoiseLevel


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


def sample(
    stage: Stage,
    process: Process,
    x: Tensor,
    noise: Callable[[tuple[int, ...]], Tensor],
    **settings: Any,
) -> Tensor:
    """The images at the end of `trajectory`, with its arguments: (B, C, H, W)."""
    for state in trajectory(stage, process, x, noise, **settings):
        x = state.x
    return x


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
    """
    look = _Denoising(stage, process, condition, guidance, clip, denoised_fn)
    for index in reversed(range(len(process))):
        drawn = noise(tuple(x.shape))
        prediction, gradient = look(x, index)
        x, prediction = step(process, index, prediction, drawn, gradient)
        yield State(index, process.timesteps[index], x, prediction)


@torch.no_grad()
def inversion(
    stage: Stage,
    process: Process,
    x: Tensor,
    *,
    condition: Any = None,
    guidance: Guidance | None = None,
    clip: bool = True,
    denoised_fn: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[State]:
    """Walk from images to noise by DDIM inversion, one state for each but the last timestep.

    From the last x, `trajectory` with eta 0 and the same process leads back to the images.

    `x` holds the images, (B, C, H, W), float32, as the state at the first kept timestep. The other
    arguments are those of `trajectory`. UsageError if the process has a single timestep.
    """
    if len(process) < 2:
        raise UsageError("DDIM inversion needs at least two steps", hint="use more steps")
    look = _Denoising(stage, process, condition, guidance, clip, denoised_fn)
    for index in range(len(process) - 1):
        prediction, gradient = look(x, index)
        x, prediction = ddim_inversion_step(process, index, prediction, gradient)
        yield State(index, process.timesteps[index], x, prediction)


@attrs.frozen
class _Denoising:
    """The clipped prediction and the guidance gradient at an index of a process."""

    stage: Stage
    process: Process
    condition: Any
    guidance: Guidance | None
    clip: bool
    denoised_fn: Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor, index: int) -> tuple[Prediction, Tensor | None]:
        timestep = self.process.timesteps[index]
        t = torch.full((x.shape[0],), timestep, dtype=torch.int64, device=x.device)  # (B,)

        def denoise(x_t: Tensor) -> Prediction:
            return self.stage.denoise(x_t, t, self.condition)

        if self.guidance is None:
            prediction, gradient = denoise(x), None
        else:
            time = timestep / self.process.schedule.num_timesteps
            level = self.process.level(index, x.shape[0])
            prediction, gradient = self.guidance(x, time, level, denoise)
        if self.clip or self.denoised_fn is not None:
            x0 = prediction.x0
            if self.denoised_fn is not None:
                x0 = self.denoised_fn(x0)
            prediction = prediction.with_x0(x0.clamp(-1.0, 1.0) if self.clip else x0)
        return prediction, gradient
