"""Later stages of a backend, run one after the other on the images of the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import attrs
from torch import Tensor

from ppap_framework.components import CascadedStage, Stage
from ppap_framework.diffusion.process import Process
from ppap_framework.diffusion.random import NoiseSource
from ppap_framework.diffusion.respacing import space_timesteps
from ppap_framework.diffusion.steps import ddim_step
from ppap_framework.diffusion.walk import trajectory


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
        later: The stages.
        images: Finished images of the stage before them, (B, 3, H, W) in [-1, 1].
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
        walk = trajectory(
            stage,
            following.process,
            x,
            noise,
            condition=stage.conditioned(condition, images),
            step=partial(ddim_step, eta=sampling.eta),
        )
        for state in walk:
            x = state.x
            if watch:
                watch(len(images))
        images = x.clamp(-1.0, 1.0)
        drawn.append(images)
    return drawn
