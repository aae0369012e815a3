"""The toy backend with a second stage, which enlarges each pixel and adds to it what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from ppap_framework.author import (
    CascadedStage,
    CascadeSampling,
    DiffusionBackend,
    Prediction,
    Stage,
    VarianceKind,
    linear_schedule,
)


@attrs.frozen(eq=False)
class Told:
    shift: Tensor | None
    low_res: Tensor


class Doubling(CascadedStage):
    """Its answer is the enlarged image, brighter by 0.1, plus 0.05 of the noisy one: DDIM shows the
    initial noise in what it draws.
    """

    name = "upsampler"
    variance: VarianceKind = "fixed_small"
    sampling = CascadeSampling(respacing="4", temperature=0.9)

    def __init__(self, before: Stage) -> None:
        _, height, width = before.image_shape
        self.image_shape = (3, 2 * height, 2 * width)
        self.schedule = linear_schedule(50)
        self.network = nn.Linear(1, 1, bias=False)
        self.network.weight.data.fill_(0.1)

    def conditioned(self, condition: Any, images: Tensor) -> Told:
        return Told(condition, images)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Told) -> Prediction:
        large = nn.functional.interpolate(condition.low_res, scale_factor=2.0, mode="nearest")
        x0 = large + self.network.weight[0, 0] + 0.05 * x_t
        abar = self.schedule.alphas_cumprod[t.cpu()].to(x_t)[:, None, None, None]
        return Prediction.from_x0(x0, x_t, abar.sqrt(), (1.0 - abar).sqrt())


class ToyCascade(DiffusionBackend):
    def __init__(self, base: DiffusionBackend, second: Stage | None = None) -> None:
        self._base = base
        self.stages = (*base.stages, second or Doubling(base.stages[0]))

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Any:
        return self._base.encode(prompts, batch)
