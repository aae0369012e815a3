"""Converts outputs of denoising networks to predictions."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ppap_framework.author import Prediction
from ppap_plugin_adm.architecture import Process

__all__ = ["Meaning"]


@final
class Meaning:
    """Converts network outputs to predictions of x0 and eps.

    Args:
        process: Diffusion process of the network.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.schedule = process.noise_schedule()
        abar = self.schedule.alphas_cumprod
        self._alpha_sigma = torch.stack([abar.sqrt(), (1 - abar).sqrt()])  # (2, T), float64

    def __call__(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """Convert one output.

        Args:
            output: (B, 3, H, W), or (B, 6, H, W) with a learned variance, of any dtype.
            x_t: (B, 3, H, W), float32, input of the network.
            t: (B,), int64 base timesteps.
        """
        if self._alpha_sigma.device != x_t.device:
            wide = x_t.device.type != "mps"  # which has no float64
            self._alpha_sigma = self._alpha_sigma.to(
                x_t.device, torch.float64 if wide else torch.float32
            )
        alpha, sigma = self._alpha_sigma[:, t.to(x_t.device), None, None, None]  # (B, 1, 1, 1)
        # Samplers compute in the layout of x_t; mixed memory formats would slow each step.
        mean, variance = output.float().contiguous(), None
        if self.process.variance == "learned_range":
            mean, variance = mean.chunk(2, dim=1)
        make = {"eps": Prediction.from_eps, "x0": Prediction.from_x0, "v": Prediction.from_v}
        return make[self.process.predicts](mean, x_t, alpha, sigma, variance)
