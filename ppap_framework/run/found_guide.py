"""Guides that plugins supply: found by name, then loaded and aimed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import attrs
from torch import Tensor

from ppap_framework.checkpoints import Checkpoint, package_file, without_downloads
from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.errors import UsageError
from ppap_framework.experts import guide_sha256
from ppap_framework.guidance import Guide, faults_of_pull
from ppap_framework.plugin import GuiderSpec, TaskLossSpec
from ppap_framework.registry import Registry, registry
from ppap_framework.run.experts import ExpertRequest, ExpertSource
from ppap_framework.run.module_guide import FunctionLoss
from ppap_framework.run.origin import Origin, find_checkpoint, resolved, suppliers
from ppap_framework.run.problems import Problems
from ppap_framework.targets import decode_target

__all__ = [
    "DEFAULT_SCALE",
    "FoundGuide",
    "LoadedGuide",
    "Loss",
    "Scale",
    "find_guide",
    "loss_name",
    "requested",
]

DEFAULT_SCALE = 4.0

Scale: TypeAlias = "float | Literal['auto'] | None"
"""How hard a guide pulls: "auto" as its experts were calibrated, None likewise where they were, and
else `DEFAULT_SCALE`."""

Loss: TypeAlias = "str | TaskLoss | Callable[[Any, Tensor], Tensor]"
"""A task loss by name or in itself, or a function of predictions and targets to energies (B,)."""


@final
@attrs.frozen(kw_only=True, eq=False)
class LoadedGuide:
    """A guide that knows where it came from.

    Attributes:
        guide: The guide itself.
        origin: Where its model came from.
        loss_name: How its loss is called.
        target_source: What the target was made of, as given.
        target_is_default: Whether it was picked because none was given.
        experts: What was said about its experts.
    """

    guide: Guide
    origin: Origin
    loss_name: str
    target_source: str
    target_is_default: bool = False
    experts: ExpertRequest = attrs.field(factory=ExpertRequest)


@attrs.frozen(kw_only=True)
class FoundGuide:
    """A guide that is there to be loaded: all is known but whether weights and target fit."""

    registry: Registry
    spec: GuiderSpec
    checkpoint: Checkpoint | None
    options: dict[str, Any]
    loss: TaskLossSpec | TaskLoss
    loss_name: str
    target: TargetInput | None
    name: str
    scale: float
    interval: tuple[float, float]
    experts: ExpertRequest
    offline: bool = False

    def load(self) -> LoadedGuide:
        """Build the network, read its weights, and aim it.

        Raises:
            AssetError: Where the weights do not fit.
            PluginError: Where the plugin fails.
            UsageError: For options that it does not take, or a target that it does not know.
        """
        start = time.perf_counter()
        provider = self.registry.provider(self.spec)
        with without_downloads(self.offline):
            model = self.registry.make(self.spec, self.options, self.checkpoint)
        origin = Origin(
            component=self.spec.name,
            distribution=provider.distribution,
            version=provider.version,
            checkpoint=self.checkpoint.name if self.checkpoint else None,
            path=self.checkpoint.path if self.checkpoint else None,
            sha256=self.checkpoint.sha256 if self.checkpoint else None,
            weights_sha256=None if self.checkpoint else guide_sha256(model),
            options=self.options,
            resolved=resolved(self.registry, self.spec, self.options),
            load_seconds=time.perf_counter() - start,
            suppliers=suppliers(
                self.registry,
                self.spec,
                self.loss,
                self.checkpoint.card if self.checkpoint else None,
            ),
        )
        target, source = self._aim(model)
        return LoadedGuide(
            guide=Guide(
                name=self.name,
                model=model,
                loss=self.registry.make(self.loss, {})
                if isinstance(self.loss, TaskLossSpec)
                else self.loss,
                target=target,
                scale=self.scale,
                interval=self.interval,
            ),
            origin=origin,
            loss_name=self.loss_name,
            target_source=source,
            target_is_default=self.target is None,
            experts=self.experts,
        )

    def _aim(self, model: GuidanceModel) -> tuple[Target, str]:
        if self.target is not None:
            return model.target(self.target), self.target.source
        # A checkpoint of the user's own has no default target. That of another one may do.
        own = self.checkpoint.card if self.checkpoint else None
        name = f"{self.registry.provider(self.spec).distribution}:{self.spec.name}"
        for card in [own] if own else self.registry.cards(name, "guider"):
            default = self.registry.default_target(name, card.name)
            if default is not None:
                packaged = default.text.startswith("package://")
                given = decode_target(package_file(default.text) if packaged else default.text)
                try:
                    return model.target(given), default.text if packaged else given.source
                except UsageError:
                    if own:
                        raise
        raise UsageError(
            f"guide {self.name!r} has nothing to aim at", hint="give it a target with --target"
        )


def find_guide(
    source: str,
    *,
    target: object = None,
    scale: Scale = None,
    interval: tuple[float, float] = (0.0, 1.0),
    loss: Loss | None = None,
    model: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    experts: ExpertSource = "auto",
    allow_mismatch: Collection[str] = (),
    name: str | None = None,
    offline: bool = False,
) -> FoundGuide:
    """The guide that `guide` would load; what can be wrong without reading weights is found.

    Args:
        offline: Whether to raise instead of downloading. The rest is as for `guide`.

    Raises:
        PpapError: As `guide`.
    """
    problems = Problems()
    label = name or source.rpartition(":")[2]
    pull, request = requested(scale, experts, allow_mismatch)
    problems.errors += faults_of_pull(label, pull, interval)
    given = None
    if target is not None:
        with problems.collected():
            given = decode_target(target)
    plugins = registry()
    wanted = dict(options or {}) | ({} if model is None else {"model": model})
    spec = found_loss = found_checkpoint = None
    with problems.collected():
        spec = plugins.spec("guider", source)
        request = attrs.evolve(request, noise_aware=spec.noise_aware, offline=offline)
        with problems.collected():
            request.check(label)
        with problems.collected():
            plugins.options(spec, wanted)
        with problems.collected():
            found_loss = _find_loss(plugins, spec, loss)
        with problems.collected():
            if checkpoint is not None or _has_default(plugins, spec, source, model):
                path = checkpoint if isinstance(checkpoint, str | None) else Path(checkpoint)
                found_checkpoint = find_checkpoint(plugins, source, "guider", path, offline=offline)
    problems.check()
    assert spec is not None
    assert found_loss is not None
    return FoundGuide(
        registry=plugins,
        spec=spec,
        checkpoint=found_checkpoint,
        options=wanted,
        loss=found_loss,
        loss_name=spec.default_loss if loss is None else loss_name(loss),
        target=given,
        name=label,
        scale=pull,
        interval=interval,
        experts=request,
        offline=offline,
    )


def requested(
    scale: Scale, experts: ExpertSource, allow_mismatch: Collection[str]
) -> tuple[float, ExpertRequest]:
    """How hard a guide pulls without calibrated experts, and what is said about its experts.

    Raises:
        UsageError: For a scale that is a word, and not "auto".
    """
    if isinstance(scale, str) and scale != "auto":
        raise UsageError(f"the scale {scale!r} is no number", hint="give a number, or auto")
    calibrated = None if scale is None else scale == "auto"
    pull = DEFAULT_SCALE if scale is None or scale == "auto" else scale
    return pull, ExpertRequest(source=experts, allow_mismatch=allow_mismatch, calibrated=calibrated)


def _find_loss(plugins: Registry, spec: GuiderSpec, wanted: Loss | None) -> TaskLossSpec | TaskLoss:
    if wanted is None:
        return plugins.default_loss(spec)
    if isinstance(wanted, TaskLoss):
        return wanted
    if not isinstance(wanted, str):
        return FunctionLoss(wanted)
    found = plugins.spec("loss", wanted)
    if found.task != spec.task:
        losses = [loss for loss in plugins.specs("loss") if isinstance(loss, TaskLossSpec)]
        fit = sorted({loss.name for loss in losses if loss.task == spec.task})
        raise UsageError(
            f"loss {wanted!r} is for {found.task}, and guider {spec.name!r} does {spec.task}",
            hint=f"for that there is {', '.join(fit)}",
        )
    return found


def loss_name(loss: Loss) -> str:
    if isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", type(loss).__name__)


def _has_default(plugins: Registry, spec: GuiderSpec, name: str, model: str | None) -> bool:
    """Whether the guider has, or should have, a checkpoint when none is asked for."""
    if spec.needs_checkpoint:
        return True
    # The default checkpoint is of the default network; another one comes with its own weights.
    return model is None and bool(plugins.cards(name, "guider"))
