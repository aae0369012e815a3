"""What a training will do: worked out, and found possible, before a picture is drawn or read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, final

import attrs
import torch
from torch import nn

from ppap_framework.components import DiffusionBackend, Stage
from ppap_framework.errors import UsageError
from ppap_framework.experts import (
    AdapterConfig,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    guide_sha256,
    installed_adapter,
)
from ppap_framework.learn.boundaries import Boundaries, Curve, ranges_for
from ppap_framework.learn.distillation import check_experts
from ppap_framework.learn.recipe import Phase, Recipe
from ppap_framework.learn.teacher import Teacher, teacher
from ppap_framework.run import LoadedBackend, Origin, Problems, find_device
from ppap_framework.run import backend as load_backend

__all__ = ["DEFAULT_ADAPTERS", "Adapters", "TransferPlan", "plan_transfer"]

Adapters = Sequence["tuple[str, Mapping[str, Any]]"]
"""Adapters by name, with options."""

DEFAULT_ADAPTERS: Adapters = (("lora", {"rank": 16, "alpha": 8.0}), ("bias", {}))


@final
@attrs.frozen(kw_only=True, eq=False)
class TransferPlan:
    """A training but for its images.

    Attributes:
        backend: Whose images they will be.
        learner: The network, and what compares its answers.
        guide_identity: Of the untouched network.
        backend_identity: Of the diffusion model.
        ranges: Of the N experts.
        phases: What is done in which order.
        adapters: What an expert is made of.
        recipe: How it is trained.
        device: Where.
        num_experts: N, where it was said.
        proposes: Whether the data shall say where experts begin, and how many where nobody did;
            ranges and phases are those of as many as there can be until `settled`.
        curve: From which they were then proposed.
        named: How the bundle shall be called, if somebody said.
    """

    backend: LoadedBackend
    learner: Teacher
    guide_identity: Identity
    backend_identity: Identity
    ranges: NoiseRanges
    phases: tuple[Phase, ...]
    adapters: tuple[AdapterConfig, ...]
    recipe: Recipe
    device: torch.device
    num_experts: int | None
    proposes: bool
    curve: Curve | None = None
    named: str | None

    @property
    def name(self) -> str:
        """Of the bundle."""
        parts = [_plain(self.backend.origin), _plain(self.learner.origin), str(len(self.ranges))]
        return self.named or "-".join(parts)

    @property
    def stage(self) -> Stage:
        """The one that guides steer."""
        return self.backend.stages[0]

    def settled(self, curve: Curve) -> TransferPlan:
        """The plan with experts that begin where a curve proposes it.

        Raises:
            UsageError: Where they cannot.
        """
        schedule = self.stage.schedule
        ranges = curve.ranges(schedule, self.num_experts)
        phases = self.recipe.phases(ranges.timesteps(schedule))
        return attrs.evolve(self, ranges=ranges, phases=phases, curve=curve)

    def attached(self) -> ExpertSet:
        """Fresh experts, to be detached by the caller.

        Raises:
            UsageError: Where an adapter finds nothing to adapt, or two adapt the same.
        """
        made = {config.name: installed_adapter(config) for config in self.adapters}
        return ExpertSet(self.learner.model, self.ranges, made)

    def settings(self, data: str, supervised: bool) -> dict[str, Any]:
        """Everything that determines the experts on one kind of machine, as JSON.

        Args:
            data: The SHA-256 of the images.
            supervised: Whether they have labels.
        """
        settings = {
            **self.seen(data),
            "supervised": supervised,
            "boundaries": list(self.ranges.boundaries),
            "adapters": [attrs.asdict(adapter) for adapter in self.adapters],
            "loss": {"name": self.learner.loss_name, "options": self.learner.loss_options},
            "recipe": attrs.asdict(self.recipe),
            "device": self.device.type,
            "versions": {"torch": torch.__version__, "ppap-framework": _version()},
        }
        return settings if self.curve is None else settings | {"proposal": attrs.asdict(self.curve)}

    def seen(self, data: str) -> dict[str, Any]:
        """Which network looks at which images, as JSON."""
        return {
            "guide": attrs.asdict(self.guide_identity),
            "backend": attrs.asdict(self.backend_identity),
            "data": data,
        }


def plan_transfer(
    backend: DiffusionBackend | str,
    guide: Teacher | nn.Module | str,
    *,
    loss: str | None,
    num_experts: int | None,
    boundaries: Boundaries,
    adapters: Adapters,
    recipe: Recipe,
    name: str | None,
    device: str,
) -> TransferPlan:
    """Work out what `transfer` will do with these arguments, which are its own.

    Raises:
        PpapError: With everything that is found wrong.
    """
    loaded = load_backend(backend)
    if isinstance(guide, Teacher) and loss is not None:
        raise UsageError(
            f"the teacher has a loss already, {guide.loss_name!r}", hint="leave out loss"
        )
    learner = guide if isinstance(guide, Teacher) else teacher(guide, loss=loss)
    schedule = loaded.stages[0].schedule
    ranges = NoiseRanges(())
    phases: tuple[Phase, ...] = ()
    problems = Problems()
    with problems.collected():
        configs = _configs(adapters)
    with problems.collected():
        ranges = ranges_for(schedule, num_experts, boundaries)
        phases = recipe.phases(ranges.timesteps(schedule))
    problems.check()
    plan = TransferPlan(
        backend=loaded,
        learner=learner,
        guide_identity=_identity(learner.origin, guide_sha256(learner.model)),
        backend_identity=_identity(loaded.origin, backend_sha256(loaded.inner)),
        ranges=ranges,
        phases=phases,
        adapters=configs,
        recipe=recipe,
        device=find_device(device),
        num_experts=num_experts,
        proposes=boundaries == "auto",
        named=name,
    )
    experts = plan.attached()
    try:
        check_experts(experts, recipe)
    finally:
        experts.detach()
    return plan


def _configs(adapters: Adapters) -> tuple[AdapterConfig, ...]:
    """Adapters that exist and take their options."""
    problems = Problems()
    configs: list[AdapterConfig] = []
    for kind, options in adapters:
        with problems.collected():
            if any(config.name == kind for config in configs):
                raise UsageError(f"adapter {kind!r} is given twice", hint="give each adapter once")
            try:
                config = AdapterConfig(name=kind, options=dict(options))
            except ValueError as error:
                raise UsageError(f"the options of adapter {kind!r} cannot be used: {error}") from (
                    error
                )
            installed_adapter(config)
            configs.append(config)
    problems.check()
    if not configs:
        raise UsageError("experts need an adapter", hint="such as lora, bias or full")
    return tuple(configs)


def _identity(origin: Origin, sha256: str) -> Identity:
    return Identity(component=origin.component, checkpoint=origin.checkpoint, sha256=sha256)


def _plain(origin: Origin) -> str:
    """The last part of "distribution:name" or of a class's qualified name."""
    return origin.component.rpartition(":")[2].rpartition(".")[2].lower()


def _version() -> str:
    try:
        return metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
