"""A guide: a network, what it is to see, and how hard it pulls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from ppap_framework.components import GuidanceModel, Target, TaskLoss
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.experts import ExpertSet, Look
from ppap_framework.guidance.scales import RangeScales
from ppap_framework.noise import NoiseLevel
from ppap_framework.predictions import widened

__all__ = ["Guide", "faults_of_pull"]


def faults_of_pull(name: str, scale: float, interval: tuple[float, float]) -> Iterator[UsageError]:
    """What is wrong with how hard and where a guide of that name shall pull; see `Guide`."""
    if not math.isfinite(scale):
        yield UsageError(
            f"the scale of guide {name!r} must be finite, not {scale}", hint="use a scale of 4, say"
        )
    low, high = interval
    if not 0.0 <= low < high <= 1.0:
        yield UsageError(
            f"guide {name!r} cannot act from {low} to {high}",
            hint="an interval is t / T from low to high, between 0 and 1, such as 0.2-0.9",
        )


@attrs.frozen(kw_only=True, eq=False)
class Guide:
    """One energy E(x) of a batch, lower where the guide sees its target.

    Attributes:
        name: How the guide is called in messages and files.
        model: In evaluation mode. Its parameters get no gradients; where they do not ask for any,
            a step takes less memory.
        loss: The distance between what the model sees and the target.
        target: What it should see.
        scale: s in g = -s dE/dx; 0 switches the guide off.
        interval: (lo, hi), where the guide acts: lo <= t / T < hi, of 0 <= lo < hi <= 1.
        scales: Factors of `scale` that depend on the noise level; None for none.
        experts: That are attached to the model and look at noisy images in its place.

    Raises:
        UsageError: For a scale that is not finite or an interval that is none.
    """

    name: str
    model: GuidanceModel
    loss: TaskLoss
    target: Target
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    scales: RangeScales | None = None
    experts: ExpertSet | None = None

    def __attrs_post_init__(self) -> None:
        for fault in faults_of_pull(self.name, self.scale, self.interval):
            raise fault
        if self.experts is not None and self.experts.model is not self.model:
            raise ValueError(f"the experts of guide {self.name!r} are of another model")

    def at(self, level: NoiseLevel) -> Look:
        """What looks at images of these levels, until the next call: see `ExpertSet.at`."""
        return self.model if self.experts is None else self.experts.at(level)

    def scale_at(self, level: NoiseLevel) -> float | Tensor:
        """s at B noise levels: one for all, or (B, 1, 1, 1) on the CPU where it depends on them."""
        return self.scale if self.scales is None else self.scale * self.scales.at(level)

    def acts(self, time: float, level: NoiseLevel) -> bool:
        """Whether the guide has a say at t / T = `time`, where images have these noise levels."""
        low, high = self.interval
        return low <= time < high and bool(torch.as_tensor(self.scale_at(level)).any())

    def rows(self, start: int, stop: int) -> Guide:
        """The guide of images `start` to `stop` - 1 of a batch."""
        return attrs.evolve(self, target=self.target.rows(start, stop))

    def gradient(self, images: Tensor, level: NoiseLevel) -> Tensor:
        """dE/dx, unscaled.

        Args:
            images: (B, 3, H, W), in the variance-preserving form.
            level: Their B noise levels.

        Returns:
            (B, 3, H, W); that of an image depends on this image alone, finite or not.

        Raises:
            PluginError: Where the model or loss gives no (B,) energies that images have a part in.
            UsageError: Where the target is an index of nothing that the model says.
        """
        with torch.enable_grad():
            x = images.detach().requires_grad_()
            prediction = self.at(level)(x, level)
            with torch.autocast(x.device.type, enabled=False):
                energy = self._energy(widened(prediction), self.target.value.to(x.device))
            if energy.shape != x.shape[:1] or not energy.requires_grad:
                raise PluginError(
                    f"the energy of guide {self.name!r} has shape {tuple(energy.shape)}"
                    f"{'' if energy.requires_grad else ' and no gradient'}",
                    hint=f"it must be ({len(x)},), one for each image, and differentiable in them",
                )
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return gradient

    def _energy(self, prediction: Any, target: Tensor) -> Tensor:
        try:
            return self.loss.energy(prediction, target)
        except (IndexError, RuntimeError) as error:
            if "out of bounds" not in str(error):
                raise
            raise UsageError(
                f"guide {self.name!r} says nothing with the index of its target "
                f"{self.target.label!r}: {error}",
                hint="give an index below the number of its outputs",
            ) from error
