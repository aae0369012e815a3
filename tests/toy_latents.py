"""A model that draws latents, and a loss of its guides."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from test_sampling_gaussian import GaussianStage
from torch import Tensor, nn

from ppap_framework.components import DiffusionBackend, TaskLoss
from ppap_framework.noise import cosine_schedule


class LatentStage(GaussianStage):
    """Latents (2, 4, 4), each N(0, 1), of images (3, 8, 8)."""

    image_shape, latent_shape = (3, 8, 8), (2, 4, 4)

    def __init__(self) -> None:
        super().__init__(cosine_schedule(1000), mean=0.0, deviation=1.0)
        self.network = nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False)
        weight = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(2))
        self.network.weight = nn.Parameter(0.5 * weight)

    def clip(self, x0: Tensor) -> Tensor:
        return x0

    def decode(self, x0: Tensor) -> Tensor:
        return self.network(x0).tanh()

    def encode(self, images: Tensor) -> Tensor:
        """The inverse, by least squares: 12 numbers of an image come from 2 of a latent."""
        numbers = F.pixel_unshuffle(images.clamp(-0.999, 0.999).atanh(), 2)
        inverse = torch.linalg.pinv(self.network.weight.flatten(1))
        return torch.einsum("bchw,cd->bdhw", numbers, inverse)


class LatentBackend(DiffusionBackend):
    def __init__(self) -> None:
        self.stages = (LatentStage(),)

    def encode(self, prompts: Any, batch: int) -> None:
        return None


class Mean(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().sum(1)
