"""DDIM inversion (Dhariwal and Nichol 2021, appendix F), as a step of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppap_framework.components import Prediction, Stage
from ppap_framework.diffusion import Process, shifted, trajectory


def inversion_step(
    process: Process, index: int, prediction: Prediction, noise: Tensor, gradient: Tensor | None, /
) -> tuple[Tensor, Prediction]:
    """The deterministic step to x_{i+1}, and from the last index to pure noise, eps."""
    abar = process.alphas_cumprod.to(prediction.x_t.dtype)
    after = abar[index + 1] if index + 1 < len(process) else torch.zeros_like(abar[index])
    to = after.sqrt(), (1.0 - after).sqrt()
    prediction = shifted(prediction, gradient, abar[index], *to)
    return to[0] * prediction.x0 + to[1] * prediction.eps, prediction


def inversion(
    stage: Stage, process: Process, x: Tensor, **how: Any
) -> Iterator[tuple[Tensor, Prediction]]:
    """From images at the first kept timestep to noise, by a step from each but the last timestep.
    `trajectory` with eta 0 leads back.
    """
    how |= {"step": inversion_step, "indices": range(len(process) - 1)}
    return trajectory(stage, process, x, torch.zeros, **how)
