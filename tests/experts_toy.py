"""Guides of known make, and an adapter that shifts biases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from ppap_framework.components import (
    DiffusionBackend,
    ExpertAdapter,
    GuidanceModel,
    Stage,
    Target,
    TargetInput,
)
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    AdapterConfig,
    BundleInfo,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    describe,
    guide_sha256,
    load_bundle,
)
from ppap_framework.noise import NoiseLevel, NoiseSchedule, linear_schedule
from ppap_framework.preprocessing import Preprocessing, PreprocessingGuide

SCHEDULE = linear_schedule(100)


class TinyGuide(GuidanceModel):
    """Logits (B, 5) of images normalised by `mean` and `std`, or something nested around them."""

    def __init__(
        self, seed: int = 0, mean: float = 0.5, std: float = 0.5, nested: str = "", width: int = 4
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, 5),
        )
        self._mean, self._std, self._nested = mean, std, nested
        self.eval()

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        logits = self.network(((images + 1) / 2 - self._mean) / self._std)
        if self._nested == "mapping":
            return {"logits": logits, "parts": [logits.exp(), (logits[:, :2], None)]}
        if self._nested == "record":
            return attrs.make_class("Answer", ["logits"])(logits)
        return logits

    def target(self, given: TargetInput) -> Target:
        return Target(value=torch.tensor([1]), label="one")


class Told(PreprocessingGuide):
    """Any network, fed as it is told."""

    def __init__(self, network: nn.Module, how: Preprocessing) -> None:
        super().__init__()
        self.network, self._how = network, how

    def preprocessed(self, preprocessing: Preprocessing) -> GuidanceModel:
        return Told(self.network, preprocessing)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        mean, std = (torch.tensor(x)[:, None, None] for x in (self._how.mean, self._how.std))
        return self.network(((images + 1) / 2 - mean) / std)

    def target(self, given: TargetInput) -> Target:
        raise NotImplementedError


class Shift(ExpertAdapter):
    """Adds a tensor of each expert's own to every parameter whose name ends so."""

    def __init__(self, ending: str = "bias") -> None:
        self._ending = ending
        self.merges = 0

    def attach(self, network: nn.Module, experts: int) -> None:
        named = network.named_parameters()
        self._network, self._biases = network, {n: p for n, p in named if n.endswith(self._ending)}
        if not self._biases:
            raise UsageError("there is no bias to shift")
        self._originals = {name: bias.detach().clone() for name, bias in self._biases.items()}
        self.shifts = [
            {name: nn.Parameter(torch.zeros_like(b)) for name, b in self._biases.items()}
            for _ in range(experts)
        ]

    @torch.no_grad()
    def activate(self, index: int | None) -> None:
        self.merges += 1
        for name, bias in self._biases.items():
            bias.copy_(self._originals[name])
            if index is not None:
                bias.add_(self.shifts[index][name])

    @contextlib.contextmanager
    def training(self, index: int) -> Iterator[None]:
        owners = {n: self._network.get_submodule(n.rpartition(".")[0]) for n in self._biases}
        for name, owner in owners.items():
            del owner._parameters["bias"]
            owner.bias = self._originals[name] + self.shifts[index][name]
        try:
            yield
        finally:
            for name, owner in owners.items():
                del owner.bias
                owner._parameters["bias"] = self._biases[name]

    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        yield from self.shifts[index].values()

    def state_dict(self) -> Mapping[str, Tensor]:
        return {
            f"{index}.{name}": shift.detach()
            for index, shifts in enumerate(self.shifts)
            for name, shift in shifts.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        if own.keys() != state.keys():
            raise AssetError(f"these differ: {sorted(own.keys() ^ state.keys())}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise AssetError(f"{name!r} has another shape")
            tensor.copy_(state[name])

    def detach(self) -> None:
        self.activate(None)


@attrs.frozen
class ShiftOptions:
    ending: str = "bias"


def shift(options: ShiftOptions) -> Shift:
    return Shift(options.ending)


class Backend(DiffusionBackend):
    """Nothing but weights, a schedule and a size."""

    def __init__(self, seed: int = 0, size: int = 8, schedule: NoiseSchedule = SCHEDULE) -> None:
        self._stage = _Stage()
        torch.manual_seed(seed)
        self._stage.network = nn.Linear(2, 2)
        self._stage.image_shape, self._stage.schedule = (3, size, size), schedule

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self._stage,)

    def encode(self, prompts: Any, batch: int) -> Any:
        raise NotImplementedError


class _Stage(Stage):
    name, variance, image_shape, schedule = "base", "fixed_small", (3, 8, 8), SCHEDULE
    network: nn.Module = nn.Identity()

    def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Any:
        raise NotImplementedError


def experts_of(
    model: GuidanceModel, number: int = 3, seed: int = 0, ending: str = "bias"
) -> ExpertSet:
    """A set whose experts shift the parameters whose names end so at random."""
    adapter = Shift(ending)
    experts = ExpertSet(model, NoiseRanges.equal(SCHEDULE, number), {"shift": adapter})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for index in range(number):
            for parameter in experts.parameters(index):
                parameter.normal_(generator=generator)
    return experts


def read(experts: ExpertSet, images: Tensor, level: NoiseLevel) -> Any:
    return experts.at(level)(images, level)


def make_adapter(config: AdapterConfig) -> ExpertAdapter:
    assert config == AdapterConfig(name="shift", options={"ending": "bias"})
    return Shift(**config.options)


def load(
    path: Path,
    model: GuidanceModel,
    backend: DiffusionBackend | None = None,
    make: Callable[[AdapterConfig], ExpertAdapter] = make_adapter,
    **how: Any,
) -> ExpertSet:
    """`load_bundle`, as if a plugin supplied the adapter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppap_framework.experts.bundle.installed_adapter", make)
        return load_bundle(path, model, backend, **how)


def trained(
    model: GuidanceModel,
    backend: DiffusionBackend,
    number: int = 3,
    seed: int = 0,
    ending: str = "bias",
    **said: Any,
) -> tuple[ExpertSet, BundleInfo]:
    """Experts and their description, as training would leave them."""
    stage = backend.stages[0]
    guide = Identity(component="look", checkpoint="first", sha256=guide_sha256(model))
    experts = experts_of(model, number, seed, ending)
    info = describe(
        experts,
        stage.schedule,
        stage.image_shape[1:],
        guide=guide,
        backend=Identity(component="toy", checkpoint=None, sha256=backend_sha256(backend)),
        adapters=[AdapterConfig(name="shift", options={"ending": ending})],
        recipe={"iterations": 10, "loss": "cross-entropy"},
        seed=7,
        **said,
    )
    return experts, info
