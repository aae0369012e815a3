"""Networks that learn in no time, pictures to learn from, and a loss of known gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from experts_toy import SCHEDULE
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.experts import AdapterConfig, ExpertSet, NoiseRanges, installed_adapter
from ppap_framework.learn import Recipe
from ppap_framework.learn.batches import TrainingSet
from ppap_framework.learn.distillation import Distillation, Report
from ppap_framework.learn.recipe import Phase
from ppap_framework.noise import NoiseLevel
from ppap_framework.runtime import Progress, evaluating


class Square(TaskLoss):
    """The squared distance, a mean over everything that an image's answer is made of."""

    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).mean(1)

    def transfer(self, student: Any, teacher: Any) -> Tensor:
        return self.energy(student, teacher)


class Means(GuidanceModel):
    """W m + b with m the mean of each channel, (B, 2): what experts learn is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 2)
        with torch.no_grad():
            self.network.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, 2.0]]))
            self.network.bias.copy_(torch.tensor([0.2, -0.1]))

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        return self.network(images.mean((2, 3)))

    def target(self, given: TargetInput) -> Target:
        raise NotImplementedError


class Convolutions(Means):
    """Two batch norms, the first of which sees the images themselves, and a dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(  # type: ignore[assignment]  # a network all the same
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.SiLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
        self.eval()

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        return self.network(images)


@attrs.frozen(eq=False)
class Pictures:
    """Any pictures, as a set of them.

    Attributes:
        levels: (N, 3, H, W), uint8, by stage.
    """

    levels: Mapping[str, Tensor]

    @property
    def manifest_hash(self) -> str:
        content = b"".join(pixels.numpy().tobytes() for pixels in self.levels.values())
        return hashlib.sha256(content).hexdigest()

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.levels)

    def __len__(self) -> int:
        return len(next(iter(self.levels.values())))

    def image_shape(self, stage: int = -1) -> tuple[int, int, int]:
        _, channels, height, width = self._of(stage).shape
        return channels, height, width

    def images(self, indices: Iterable[int] | Tensor, stage: int = -1) -> Tensor:
        return self._of(stage)[torch.as_tensor(list(indices))]

    def _of(self, stage: int) -> Tensor:
        return list(self.levels.values())[stage]


def pictures(count: int = 20, size: int = 8, seed: int = 0) -> Tensor:
    """(N, 3, H, W), uint8: noise around a colour of each picture's own."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 1, 1, generator=generator) * 200
    return (colours + torch.rand(count, 3, size, size, generator=generator) * 55).to(torch.uint8)


def npz(path: Path, images: Tensor, labels: Any) -> Path:
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=labels)
    return path


def seen(levels: Tensor) -> Tensor:
    """Pictures as networks get them."""
    return levels.float() / 127.5 - 1.0


def attached(model: GuidanceModel, experts: int = 2, **options: Mapping[str, Any]) -> ExpertSet:
    """Fresh experts; adapters by name, with their options."""
    made = {
        name: installed_adapter(AdapterConfig(name=name, options=dict(given)))
        for name, given in (options or {"bias": {}}).items()
    }
    return ExpertSet(model, NoiseRanges.equal(SCHEDULE, experts), made)


def untrained(
    experts: ExpertSet,
    recipe: Recipe,
    x0: Tensor | None = None,
    *,
    loss: TaskLoss | None = None,
    answers: Callable[[Tensor], Any] | None = None,
    images: Callable[[Tensor], Tensor] | None = None,
    supervised: bool = False,
    phases: tuple[Phase, ...] | None = None,
) -> Distillation:
    """A training on `x0`, (N, 3, H, W), with the untouched network as teacher."""
    x0 = seen(pictures()) if x0 is None else x0
    if answers is None:
        with torch.no_grad(), evaluating(experts.model):
            answers = experts.model(x0, None).__getitem__
    data = TrainingSet(
        images=images or x0.__getitem__,
        answers=answers,
        supervised=supervised,
        count=len(x0),
        shape=(3, *x0.shape[2:]),
    )
    phases = phases or recipe.phases(experts.ranges.timesteps(SCHEDULE))
    return Distillation(experts, loss or Square(), SCHEDULE, data, recipe, phases)


def trained(*arguments: Any, **named: Any) -> list[Report]:
    """All reports of a training, with the arguments of `untrained`."""
    return list(untrained(*arguments, **named).run())


def stopping(at: int) -> Callable[[Progress], None]:
    """Interrupts a training after so many iterations."""

    def watch(progress: Progress) -> None:
        if (progress.task, progress.done) == ("learning", at):
            raise KeyboardInterrupt

    return watch


def bits(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """What can be compared to the last bit, NaN and all."""
    return {
        name: str(tensor.dtype).encode() + tensor.detach().contiguous().numpy().tobytes()
        for name, tensor in tensors.items()
    }


def anatomy(model: nn.Module) -> list[object]:
    """All of a network: values, objects, modes, flags, gradients and hooks."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        bits(dict(tensors)),
        [(name, id(tensor), tensor.requires_grad, tensor.grad) for name, tensor in tensors],
        [
            (name, type(module), module.training, len(module._forward_pre_hooks), set(vars(module)))
            for name, module in model.named_modules()
        ],
    ]
