"""A diffusion model of one Gaussian, and guides that see colours and brightness.

With x_0 ~ N(mean, s^2 I), the posterior mean of x_0 given x_t = alpha x_0 + sigma eps is

    mean + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha mean).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppap_framework.author import (
    Adaptation,
    Checkpoint,
    DiffusionBackend,
    ExpertAdapter,
    GuidanceModel,
    NoiseLevel,
    ParametrizationAdapter,
    Prediction,
    Stage,
    Target,
    TargetInput,
    TaskLoss,
    UsageError,
    cosine_schedule,
    load_into,
)
from ppap_plugin_toy.options import ColourOptions, GreyOptions

SHIFTS = {"darker": -0.5, "brighter": 0.5}
COLOURS = ("dark red", "light red", "green", "blue")


class Gaussian(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3, size, size))
        self.spread = nn.Parameter(torch.tensor(0.25))


class ToyStage(Stage):
    name = "base"
    variance = "fixed_small"

    def __init__(self, network: Gaussian, timesteps: int) -> None:
        self.network = network
        self.image_shape = tuple(network.mean.shape)
        self.schedule = cosine_schedule(timesteps)
        # So that tests can interrupt a run that takes a while, or see one that goes wrong.
        self._delay = float(os.environ.get("TOY_DELAY", "0"))
        self._broken = "TOY_BROKEN" in os.environ

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
        time.sleep(self._delay)
        abar = self.schedule.alphas_cumprod[t.cpu()].to(x_t)[:, None, None, None]
        alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
        mean, s2 = self.network.mean, self.network.spread**2
        if condition is not None:
            mean = mean + condition.to(x_t)[:, None, None, None]
        x0 = mean + alpha * s2 / (alpha**2 * s2 + sigma**2) * (x_t - alpha * mean)
        if self._broken:
            x0 = x0 * torch.nan
        return Prediction.from_x0(x0, x_t, alpha, sigma)


class ToyBackend(DiffusionBackend):
    def __init__(self, stage: Stage) -> None:
        self.stages = (stage,)

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Tensor | None:
        if prompts is None:
            return None
        if unknown := [prompt for prompt in prompts if prompt not in SHIFTS]:
            raise UsageError(f"{unknown[0]!r} is no prompt", hint=f"say {' or '.join(SHIFTS)}")
        assert len(prompts) == batch
        return torch.tensor([SHIFTS[prompt] for prompt in prompts])


def make_backend(options: None, checkpoint: Checkpoint) -> ToyBackend:
    stated = {"size": 8, "timesteps": 100, **checkpoint.architecture}
    network = Gaussian(stated["size"])
    load_into(network, checkpoint)
    return ToyBackend(ToyStage(network, stated["timesteps"]))


class Colour(GuidanceModel):
    """Logits (B, 4), linear in the mean of each channel."""

    def __init__(self, options: ColourOptions) -> None:
        super().__init__()
        self.network = nn.Linear(3, 4, bias=False)
        self._sharpness = options.sharpness * (-1.0 if options.upside_down else 1.0)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        logits: Tensor = self._sharpness * self.network(images.mean((2, 3)))
        return logits

    def target(self, given: TargetInput) -> Target:
        if given.array is not None:
            return Target(value=given.array, label="several colours")
        if given.image is not None:
            with torch.no_grad():
                seen = self(given.pixels()[None]).argmax(1)
            return Target(value=seen, label=f"as {given.source}")
        found = [i for i, name in enumerate(COLOURS) if (given.text or "?") in name]
        if len(found) != 1:
            fault = "is ambiguous" if found else "is no colour"
            raise UsageError(f"{given.text!r} {fault}", hint=f"type one of {', '.join(COLOURS)}")
        return Target(value=torch.tensor(found), label=COLOURS[found[0]])

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        return images.flip(3)

    def describe(self, prediction: Tensor) -> list[str]:
        probabilities, index = prediction.softmax(1).max(1)
        pairs = zip(index.tolist(), probabilities.tolist(), strict=True)
        return [f"{COLOURS[i]} {p:.2f}" for i, p in pairs]


def make_colour(options: ColourOptions, checkpoint: Checkpoint) -> Colour:
    made = Colour(options)
    load_into(made.network, checkpoint)
    return made


class Grey(GuidanceModel):
    """Brightness (B, H, W), of which nothing short can be said."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Identity()

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return images.mean(1)

    def target(self, given: TargetInput) -> Target:
        if given.array is not None:
            levels = given.array.float()[None]
            return Target(value=levels, label="levels", picture=levels.expand(3, -1, -1))
        if given.image is None:
            raise UsageError(f"{given.source!r} is no picture", hint="give the path of one")
        levels = torch.tensor(list(given.image.convert("L").tobytes())) / 127.5 - 1.0
        value = levels.reshape(1, given.image.height, given.image.width)
        return Target(value=value, label=given.source, picture=value.expand(3, -1, -1))

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        return prediction[:, None].expand(-1, 3, -1, -1)


def make_grey(options: GreyOptions, checkpoint: Checkpoint | None) -> Grey:
    return Grey()


class CrossEntropy(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        classes = target.expand(len(prediction))
        return nn.functional.cross_entropy(prediction, classes, reduction="none")

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        hit = (prediction.argmax(1) == target).float()
        return {"hit": hit, "broken": prediction[:, 0] * torch.nan}


class Margin(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -prediction.gather(1, target.expand(len(prediction))[:, None])[:, 0]


class Square(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean((1, 2))


class Distance(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean((1, 2))

    def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.energy(student, teacher)

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        distance = self.energy(prediction, target)
        return {"distance": distance, "likeness": 1.0 - distance, "unknown": distance * torch.nan}


class Shift(nn.Module):
    """W + d, with d for an expert to learn."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(start))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift


def make_shift(options: None) -> ExpertAdapter:
    return ParametrizationAdapter(lambda network: Adaptation(parametrizations={"weight": Shift}))
