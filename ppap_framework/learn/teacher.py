"""The off-the-shelf network as teacher: what it is, how answers are compared, what it answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.errors import UsageError
from ppap_framework.plugin import TaskLossSpec
from ppap_framework.predictions import each_tensor, joined
from ppap_framework.registry import registry
from ppap_framework.run import FunctionLoss, Loss, ModuleGuide, Origin, find_guide

__all__ = ["Answers", "Teacher", "teacher"]


@final
@attrs.frozen(kw_only=True, eq=False)
class Teacher:
    """A network that shall learn to read noise from itself.

    Attributes:
        model: The network with what it needs around it.
        loss: Whose `transfer` compares answers.
        loss_name: How that is called.
        loss_options: With which it was made.
        origin: Where the model came from.
    """

    model: GuidanceModel
    loss: TaskLoss
    loss_name: str
    loss_options: dict[str, Any] = attrs.field(factory=dict)
    origin: Origin


def teacher(
    source: str | nn.Module,
    *,
    loss: str | TaskLoss | None = None,
    loss_options: Mapping[str, Any] | None = None,
    model: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
) -> Teacher:
    """The network that `ppap_framework.guide` would make a guide of, without a target.

    Args:
        source: As for `guide`, which is where `model`, `checkpoint`, `options`, `mean`, `std` and
            `size` are described.
        loss: By name or in itself; None for a guider's own.
        loss_options: Of a loss by name.

    Raises:
        PpapError: As `guide`; and UsageError for a guider that understands noise already.
    """
    given = dict(loss_options or {})
    if isinstance(source, str):
        if mean is not None or std is not None or size is not None:
            raise UsageError(
                f"guider {source!r} has its own normalisation and size",
                hint="mean, std and size are for a network of your own",
            )
        if registry().spec("guider", source).noise_aware:
            raise UsageError(
                f"guider {source!r} understands noise already",
                hint="experts are for networks that have only seen clean images",
            )
        found = find_guide(source, loss=loss, model=model, checkpoint=checkpoint, options=options)
        origin = Origin(
            component=found.spec.name,
            distribution=found.registry.provider(found.spec).distribution,
            version=found.registry.provider(found.spec).version,
            checkpoint=found.checkpoint.name if found.checkpoint else None,
            path=found.checkpoint.path if found.checkpoint else None,
            sha256=found.checkpoint.sha256 if found.checkpoint else None,
            options=found.options,
        )
        return Teacher(
            model=found.registry.make(found.spec, found.options, found.checkpoint),
            loss=_made(found.loss, given),
            loss_name=found.loss_name,
            loss_options=given,
            origin=origin,
        )
    if model is not None or checkpoint is not None or options:
        raise UsageError("a network that is already made takes no model, checkpoint and options")
    label = type(source).__name__
    if loss is None:
        raise UsageError(f"network {label!r} needs a loss", hint='such as loss="cross-entropy"')
    plugins = registry()
    wrapped = source
    if not isinstance(wrapped, GuidanceModel):
        wrapped = ModuleGuide(wrapped, mean=mean, std=std, size=size)
    wanted: Loss | TaskLossSpec = loss
    if isinstance(loss, str):
        wanted = plugins.spec("loss", loss)
    return Teacher(
        model=wrapped,
        loss=_made(wanted, given),
        loss_name=loss if isinstance(loss, str) else type(loss).__name__,
        loss_options=given,
        origin=Origin(component=label),
    )


@final
class Answers:
    """A teacher's answers to clean images, computed once, in memory.

    Args:
        model: The untouched network, in evaluation mode.
        images: The clean image of given numbers, (B, 3, H, W) in [-1, 1], on the model's device.
        count: How many images there are.
        batch: How many are looked at once.
    """

    def __init__(
        self, model: GuidanceModel, images: Callable[[Tensor], Tensor], count: int, batch: int
    ) -> None:
        with torch.no_grad():
            parts = [
                model(images(torch.arange(first, min(first + batch, count))), None)
                for first in range(0, count, batch)
            ]
        self._all = joined(parts)

    def of(self, rows: Tensor) -> Any:
        """The answers to B images, by their numbers (B,), as the model gives them."""
        return each_tensor(lambda tensor: tensor[rows.to(tensor.device)], self._all)


def _made(loss: Any, options: dict[str, Any]) -> TaskLoss:
    if isinstance(loss, TaskLossSpec):
        made: TaskLoss = registry().make(loss, options)
        return made
    if options:
        raise UsageError("a loss that is already made takes no options")
    if isinstance(loss, FunctionLoss) or not isinstance(loss, TaskLoss):
        raise UsageError(
            "a bare function does not say how a student learns from a teacher",
            hint="give a TaskLoss, or the name of one",
        )
    return loss
