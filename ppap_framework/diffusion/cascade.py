"""From the images of the first stage to those of the last: later stages, one after the other."""

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
        """The stage with its own sampling.

        Raises:
            UsageError: If its schedule cannot be respaced so.
        """
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
    """Run later stages on finished images.

    Args:
        later: The stages, in their order.
        images: (B, 3, H, W) in [-1, 1], of the stage before the first of them.
        condition: What the backend encoded for these B images.
        seed: Noise of image i comes from (seed, i) and the stage alone.
        start: The number of the first image.
        watch: Called after every step with the number of images that took it.
        ready: Called before each stage begins.

    Returns:
        The images of each of them, (B, 3, H', W') in [-1, 1].
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
