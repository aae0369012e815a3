"""The walk of a batch along a process: from noise to images, or from images back to noise."""

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

__all__ = ["Guidance", "State", "inversion", "sample", "trajectory"]


class Guidance(Protocol):
    """What steers a walk; `ppap_framework.guidance.EnergyGuidance` does."""

    def __call__(
        self, x_t: Tensor, time: float, level: NoiseLevel, denoise: Callable[[Tensor], Prediction]
    ) -> tuple[Prediction, Tensor | None]:
        """Denoise x_t, and say whither to move it.

        Args:
            x_t: (B, C, H, W).
            time: t / T in [0, 1) of the whole batch; 0 is the least noisy.
            level: The B noise levels of x_t, all the same.
            denoise: The stage's denoiser at this timestep.

        Returns:
            `denoise(x_t)`, without a graph, and g = -s dE/dx_t, (B, C, H, W), or None.
        """
        ...


@attrs.frozen(eq=False)
class State:
    """Where a walk stands after a step.

    Attributes:
        index: Of the process, from which the step was taken.
        timestep: The base timestep of that index.
        x: (B, C, H, W), the state that it led to.
        prediction: That it was made from; its x0 is the preview of the final images.
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
    *,
    condition: Any = None,
    step: Step = ddim_step,
    guidance: Guidance | None = None,
    clip: bool = True,
    denoised_fn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The images at the end of `trajectory`, which says what the arguments are: (B, C, H, W)."""
    for state in trajectory(
        stage,
        process,
        x,
        noise,
        condition=condition,
        step=step,
        guidance=guidance,
        clip=clip,
        denoised_fn=denoised_fn,
    ):
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
        stage: Whose denoiser is asked, at base timesteps.
        process: On the stage's schedule.
        x: (B, C, H, W), float32, the initial noise; its device is where everything happens.
        noise: Draws (B, C, H, W) for a step; a `NoiseSource`, of which `x` was the first draw.
        condition: What the backend encoded for these B images.
        step: `ddim_step`, `partial(ddim_step, eta=...)` or `ddpm_step`.
        guidance: What steers, or None.
        clip: Whether each x_0 is clamped to [-1, 1] before it is used.
        denoised_fn: Changes each x_0, (B, C, H, W), before it is clamped.
    """
    for index in reversed(range(len(process))):
        drawn = noise(tuple(x.shape))
        prediction, gradient = _look(stage, process, index, x, condition, guidance)
        prediction = _constrain(prediction, clip, denoised_fn)
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

    From the last state's x, `trajectory` with eta 0 and the same process leads back to the images.

    Args:
        x: (B, C, H, W), float32, the images, taken to be the state at the first kept timestep. The
            other arguments are those of `trajectory`.

    Raises:
        UsageError: Where the process has a single timestep, which leaves nowhere to walk.
    """
    if len(process) < 2:
        raise UsageError("DDIM inversion needs at least two steps", hint="use more steps")
    for index in range(len(process) - 1):
        prediction, gradient = _look(stage, process, index, x, condition, guidance)
        prediction = _constrain(prediction, clip, denoised_fn)
        x, prediction = ddim_inversion_step(process, index, prediction, gradient)
        yield State(index, process.timesteps[index], x, prediction)


def _look(
    stage: Stage,
    process: Process,
    index: int,
    x: Tensor,
    condition: Any,
    guidance: Guidance | None,
) -> tuple[Prediction, Tensor | None]:
    timestep = process.timesteps[index]
    t = torch.full((x.shape[0],), timestep, device=x.device)  # (B,)

    def denoise(x_t: Tensor) -> Prediction:
        return stage.denoise(x_t, t, condition)

    if guidance is None:
        return denoise(x), None
    time = timestep / process.schedule.num_timesteps
    return guidance(x, time, process.level(index, x.shape[0]), denoise)


def _constrain(
    prediction: Prediction, clip: bool, denoised_fn: Callable[[Tensor], Tensor] | None
) -> Prediction:
    if not clip and denoised_fn is None:
        return prediction
    x0 = prediction.x0
    if denoised_fn is not None:
        x0 = denoised_fn(x0)
    return prediction.with_x0(x0.clamp(-1.0, 1.0) if clip else x0)
