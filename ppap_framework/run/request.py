"""Requests for guides, by name or as the user's own network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import attrs
from torch import Tensor, nn

from ppap_framework.checkpoints import Checkpoint, find_checkpoint, package_file
from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.errors import Problems, UsageError
from ppap_framework.experts import (
    WantedExperts,
    check_wanted,
    guide_sha256,
    has_experts,
)
from ppap_framework.files import expanded
from ppap_framework.guidance import Guide, Scale, Through, scale_problems
from ppap_framework.origin import Origin
from ppap_framework.plugin import GuiderSpec, TaskLossSpec
from ppap_framework.registry import registry
from ppap_framework.run.backend import made_by_plugin, suppliers
from ppap_framework.run.module_guide import FunctionLoss, ModuleGuide
from ppap_framework.runtime import isolated
from ppap_framework.targets import decode_target

Loss: TypeAlias = "str | TaskLoss | Callable[[Any, Tensor], Tensor]"
"""A task loss by name or as an object, or a function from predictions and targets to energies."""


def guide(source: str | nn.Module, **request: Any) -> Guide:
    """A guide, loaded and aimed.

    Args:
        source: Name of a guider that a plugin supplies, a `GuidanceModel`, or any network, which
            is wrapped into a `ModuleGuide`.
        **request: The other attributes of `GuideRequest`, such as `target="red cube", scale=4`.

    Raises:
        PluginError: If no plugin, or more than one, supplies the guider or loss, or one fails.
        AssetError: If the checkpoint or a file of the target is missing, damaged or unfit.
        UsageError: If other arguments are invalid; it lists all of them.
    """
    return GuideRequest(source=source, **request).load()


def _dict(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(given or {})


def _path(value: Any) -> Any:
    """Paths stay paths, made absolute: never taken for names, nor changed by a later chdir."""
    return expanded(value).absolute() if isinstance(value, os.PathLike) else value


class _Found(NamedTuple):
    """The components of a request, found without reading weights."""

    spec: GuiderSpec | None
    checkpoint: Checkpoint | None
    loss: TaskLossSpec | TaskLoss
    target: TargetInput | None


@attrs.frozen(kw_only=True, eq=False, slots=False)
class GuideRequest:
    """A guide as it was asked for. What is not listed is as in `Guide`.

    Attributes:
        source: Name of a guider, a `GuidanceModel`, or any network.
        target: What it should see: words, an index, the path of a picture or array, a PIL image,
            an array or a tensor, as the guide understands it. None takes the default of the
            guider's checkpoint, if there is one.
        loss: The loss; None for the guider's own. A bare network has none.
        loss_options: Options of a loss given by name.
        model: Name of the network, for a guider with several: its option `model`.
        checkpoint: Name of one of the guider's checkpoints, or the path of a file; None for its
            default, or with `model` for that network's own.
        options: Options of the guider.
        mean: Channel means of a network; see `ModuleGuide`, also for `std` and `size`.
        experts: Experts that read noisy images in the guide's place; see `WantedExperts`. Clean
            images, and guides that read noise themselves, need none.
        name: Name in messages and files; by default that of the guider or class.
    """

    source: str | nn.Module
    target: object = None
    scale: Scale = None
    interval: tuple[float, float] = (0.0, 1.0)
    loss: Loss | None = None
    loss_options: Mapping[str, Any] = attrs.field(default=None, converter=_dict)
    model: str | None = None
    checkpoint: str | Path | None = attrs.field(default=None, converter=_path)
    options: Mapping[str, Any] = attrs.field(default=None, converter=_dict)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | None = None
    experts: WantedExperts = attrs.field(default="auto", converter=_path)
    allow_mismatch: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    name: str | None = None
    offline: bool = False

    @property
    def label(self) -> str:
        """The guide's name."""
        if self.name or not isinstance(self.source, str):
            return self.name or type(self.source).__name__
        return self.source.rpartition(":")[2]

    @property
    def noise_aware(self) -> bool:
        """Whether the guider reads noise itself and takes no experts; PluginError as of `guide`."""
        source = self.source
        return isinstance(source, str) and registry().spec("guider", source).noise_aware

    def check(self, through: Through | None = None) -> None:
        """Find all errors, as of `guide`, without reading weights."""
        spec = self._found.spec
        how: Any = {"noise_aware": bool(spec and spec.noise_aware), "through": through}
        more: Any = {"allow_mismatch": self.allow_mismatch, "offline": self.offline}
        check_wanted(self.experts, self.label, **how, **more)

    @isolated()
    def load(self, *, aim: bool = True) -> Guide:
        """Build the network and read its weights; `aim` gives it a target. Errors as of `guide`."""
        self.check()
        model, origin = self._model()
        target, source = self._target(model) if aim else (None, "")
        loss, name = self._found.loss, self.loss
        if isinstance(loss, TaskLossSpec):
            name, loss = name or loss.name, registry().make(loss, self.loss_options)
        if not isinstance(name, str):
            name = getattr(name, "__name__", type(name).__name__)
        same = ("scale", "interval", "experts", "allow_mismatch", "noise_aware", "offline")
        return Guide(
            name=self.label,
            model=model,
            loss=loss,
            target=target,
            origin=origin,
            loss_name=name,
            loss_options=dict(self.loss_options),
            target_source=source,
            target_is_default=self.target is None,
            **{field: getattr(self, field) for field in same},
        )

    @cached_property
    def _found(self) -> _Found:
        problems, spec, checkpoint, target = Problems(), None, None, None
        problems.errors += scale_problems(self.label, self.scale, self.interval)
        with problems.collected():
            target = None if self.target is None else decode_target(self.target)
        with problems.collected():
            if isinstance(self.source, str):
                spec = registry().spec("guider", self.source)
            with problems.collected():
                self._check_options(spec)
            with problems.collected():
                checkpoint = self._find_checkpoint(spec)
            loss = self._find_loss(spec)
        problems.check()
        return _Found(spec, checkpoint, loss, target)

    def _check_options(self, spec: GuiderSpec | None) -> None:
        source: Any = self.source
        if not isinstance(source, str | nn.Module):
            what = getattr(source, "__name__", None) or type(source).__name__
            hint = "give the name of a guider, or a network: an object of a class of nn.Module"
            raise UsageError(f"{what!r} is no network", hint=hint)
        own = {"mean": self.mean, "std": self.std, "size": self.size}
        named: dict[str, Any] = {"model": self.model, "checkpoint": self.checkpoint}
        named["options"] = self.options or None
        if wrong := [name for name, value in (own if spec else named).items() if value is not None]:
            what = f"guider {self.source!r}" if spec else "a network that is already made"
            raise UsageError(f"{what} takes no {' and '.join(wrong)}", hint="leave it out")
        if spec is not None:
            registry().options(spec, self._options)

    @property
    def _options(self) -> dict[str, Any]:
        return dict(self.options) | ({} if self.model is None else {"model": self.model})

    def _find_checkpoint(self, spec: GuiderSpec | None) -> Checkpoint | None:
        if spec is None or not isinstance(self.source, str):
            return None
        # The default checkpoint belongs to the default network; another has its own weights.
        default = self.model is None and bool(registry().cards(self.source, "guider"))
        if self.checkpoint is None and not (spec.needs_checkpoint or default):
            return None
        wanted, offline = self.checkpoint, self.offline
        return find_checkpoint(registry(), self.source, "guider", wanted, offline=offline)

    def _find_loss(self, spec: GuiderSpec | None) -> TaskLossSpec | TaskLoss:
        loss = self.loss
        if loss is not None and not isinstance(loss, str):
            if self.loss_options:
                raise UsageError("a loss that is already made takes no options")
            return loss if isinstance(loss, TaskLoss) else FunctionLoss(loss)
        if loss is not None:
            found: TaskLossSpec = registry().spec("loss", loss)
        elif spec is not None:
            found = registry().default_loss(spec)
        else:
            hint = 'such as loss="cross-entropy"'
            raise UsageError(f"guide {self.label!r} needs a loss", hint=hint)
        if loss is not None and spec is not None and found.task != spec.task:
            every: list[Any] = registry().specs("loss")
            fit = sorted({other.name for other in every if other.task == spec.task})
            reason = f"loss {loss!r} is for {found.task}, and guider {spec.name!r} does {spec.task}"
            raise UsageError(reason, hint=f"for that there is {', '.join(fit)}")
        registry().options(found, self.loss_options)
        return found

    def _model(self) -> tuple[GuidanceModel, Origin]:
        spec, checkpoint, loss, _ = self._found
        of_plugin = loss if isinstance(loss, TaskLossSpec) else None
        model: Any = self.source
        if spec is not None:
            model, origin = made_by_plugin(spec, self._options, checkpoint, self.offline, of_plugin)
        else:
            if not isinstance(model, GuidanceModel):
                how: Any = {"mean": self.mean, "std": self.std, "size": self.size}
                model = ModuleGuide(model, **how, task=of_plugin.task if of_plugin else None)
            origin = Origin(component=self.label, suppliers=suppliers(of_plugin))
        if checkpoint is None and not has_experts(model.network):
            origin = attrs.evolve(origin, weights_sha256=guide_sha256(model))
        return model, origin

    def _target(self, model: GuidanceModel) -> tuple[Target, str]:
        """The target, and what it was made from."""
        spec, checkpoint, _, given = self._found
        if given is not None:
            return model.target(given), given.source
        if spec is None:
            raise UsageError(f"guide {self.label!r} needs a target", hint="such as target=3")
        # A checkpoint of the user's own has no default target; that of another one may do.
        own = checkpoint.card if checkpoint else None
        name = f"{registry().provider(spec).distribution}:{spec.name}"
        passed_over = () if own else (UsageError,)
        for card in [own] if own else registry().cards(name, "guider"):
            default = registry().default_target(name, card.name)
            if default is None:
                continue
            packaged = default.text.startswith("package://")
            given = decode_target(package_file(default.text) if packaged else default.text)
            with contextlib.suppress(*passed_over):
                return model.target(given), default.text if packaged else given.source
        reason = f"guide {self.label!r} has nothing to aim at"
        raise UsageError(reason, hint="give it a target with --target")
