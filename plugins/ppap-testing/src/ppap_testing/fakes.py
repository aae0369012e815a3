"""A backend and a guider whose answers are known in closed form, for tests of plugins.

    result = ppap.sample(FakeBackend(), guides=[ppap.guide("edges", target="0.3")], num=2, steps=5)

`isolated_registry("ppap_testing.fakes_plugin", ...)` makes them known as `fake`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ppap_framework.author import (
    Checkpoint,
    DiffusionBackend,
    GuidanceModel,
    NoiseLevel,
    Prediction,
    Stage,
    Target,
    TargetInput,
    TaskLoss,
    UsageError,
    class_target,
    cosine_schedule,
)

COLOURS = ("red", "green", "blue", "grey")


class _Gaussian(nn.Module):
    """The mean and the standard deviation of images of independent pixels."""

    def __init__(self, size: int, spread: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(0.2 * torch.ones(3, size, size))
        self.spread = nn.Parameter(torch.tensor(spread))


class _FakeStage(Stage):
    name = "base"
    variance = "fixed_small"
    network: _Gaussian

    def __init__(self, size: int, timesteps: int, spread: float) -> None:
        self.network = _Gaussian(size, spread)
        self.image_shape = (3, size, size)
        self.schedule = cosine_schedule(timesteps)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        """E[x_0 | x_t] = m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha m)."""
        abar = self.schedule.alphas_cumprod[t.cpu()].to(x_t.device)[:, None, None, None]
        alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
        mean, variance = self.network.mean, self.network.spread**2
        a, s = alpha.to(x_t), sigma.to(x_t)
        x0 = mean + a * variance / (a**2 * variance + s**2) * (x_t - a * mean)
        return Prediction.from_x0(x0, x_t, alpha, sigma)


@final
class FakeBackend(DiffusionBackend):
    """A diffusion model of one Gaussian: x_0 ~ N(m, s^2 I) with a mean of 0.2.

    Args:
        size: Side of the images in pixels.
        timesteps: Number of timesteps of its cosine schedule.
        spread: Standard deviation s.
    """

    def __init__(self, size: int = 16, *, timesteps: int = 100, spread: float = 0.25) -> None:
        self.stages = (_FakeStage(size, timesteps, spread),)

    def encode(self, prompts: Sequence[str] | None, batch: int) -> None:
        """No condition; UsageError for prompts."""
        if prompts is not None:
            raise UsageError("the fake backend takes no prompt", hint="leave out --prompt")


@final
class FakeGuider(GuidanceModel):
    """A small convolutional classifier of four colours with random weights, always the same ones.

    Its network has a batch norm and layers that every kind of adapter changes.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = fake_network()
        self.eval()

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Logits (B, 4)."""
        logits: Tensor = self.network(images)
        return logits

    def target(self, given: TargetInput) -> Target:
        """A colour by name or index, or that of a picture."""
        return class_target(given, COLOURS, self)


def fake_network() -> nn.Sequential:
    """Maps (B, 3, H, W) to (B, 4); smooth, random weights from torch's global generator."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 64),
        nn.SiLU(),
        nn.Linear(64, 64),
        nn.SiLU(),
        nn.Linear(64, len(COLOURS)),
    )


class FakeCrossEntropy(TaskLoss):
    """Cross-entropy of logits (B, K) with classes (B,) or (1,)."""

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        """-log p(target): (B,), in nats."""
        classes = target.expand(len(prediction))
        return nn.functional.cross_entropy(prediction, classes, reduction="none")


def make_backend(options: None, checkpoint: Checkpoint | None) -> FakeBackend:
    """Factory of the backend `fake`."""
    return FakeBackend()


def make_guider(options: None, checkpoint: Checkpoint | None) -> FakeGuider:
    """Factory of the guider `fake`."""
    return FakeGuider()
