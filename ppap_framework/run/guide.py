"""Guides by name, or from the user's own network."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.errors import UsageError
from ppap_framework.guidance import Guide
from ppap_framework.registry import registry
from ppap_framework.run.experts import ExpertSource
from ppap_framework.run.found_guide import (
    LoadedGuide,
    Loss,
    Scale,
    find_guide,
    loss_name,
    requested,
)
from ppap_framework.run.module_guide import FunctionLoss, ModuleGuide
from ppap_framework.run.origin import Origin, own_sha256, suppliers
from ppap_framework.targets import decode_target

__all__ = ["guide"]


def guide(
    source: str | nn.Module,
    *,
    target: object = None,
    scale: Scale = None,
    interval: tuple[float, float] = (0.0, 1.0),
    loss: Loss | None = None,
    model: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    experts: ExpertSource = "auto",
    allow_mismatch: Collection[str] = (),
    name: str | None = None,
) -> LoadedGuide:
    """A guide, aimed and ready to steer.

    Args:
        source: The name of a guider that a plugin supplies, a `GuidanceModel`, or any network,
            which is wrapped into a `ModuleGuide`.
        target: What it should see: words, an index, the path of a picture or array, a PIL image, an
            array or a tensor, as the guide understands it. None takes the default that a plugin
            offers for the guider's checkpoint.
        scale: How hard it pulls: g = -scale dE/dx. "auto" takes the scales that its experts were
            calibrated with, each at the noise levels which that expert owns; None does so where
            they were, and else takes 4.
        interval: (lo, hi), where it acts, as t / T; half-open, 1 is pure noise.
        loss: What it descends; None for a guider's own. A network has none of its own.
        model: Which network, for a guider that knows several: its option `model`.
        checkpoint: The name of one of the guider's checkpoints, or the path of a file; None for its
            default, or with `model` for what that network comes with.
        options: The guider's own options.
        mean: For a network: see `ModuleGuide`; as are `std` and `size`.
        experts: What looks at noisy images in its place: the path or name of a bundle, an
            `ExpertSet` that is attached to the model given as `source`, "none", or "auto" for the
            newest bundle whose every hash matches, if there is one. Images that are not noisy, and
            guides that read noise by themselves, go without.
        allow_mismatch: In what a bundle may differ from what is here: "backend", "resolution".
        name: How the guide is called in messages and files; by default as the guider or class.

    Raises:
        PluginError: Where no plugin, or more than one, supplies the guider or loss, or one fails.
        AssetError: Where the checkpoint or a file of the target is missing, damaged or unfit.
        UsageError: For any other argument that cannot be used; several are told of at once.
    """
    if isinstance(source, str):
        if mean is not None or std is not None or size is not None:
            raise UsageError(
                f"guider {source!r} has its own normalisation and size",
                hint="mean, std and size are for a network of your own",
            )
        return find_guide(
            source,
            target=target,
            scale=scale,
            interval=interval,
            loss=loss,
            model=model,
            checkpoint=checkpoint,
            options=options,
            experts=experts,
            allow_mismatch=allow_mismatch,
            name=name,
        ).load()
    if model is not None or checkpoint is not None or options:
        raise UsageError("a network that is already made takes no model, checkpoint and options")
    label = name or type(source).__name__
    if loss is None:
        raise UsageError(f"guide {label!r} needs a loss", hint='such as loss="cross-entropy"')
    if target is None:
        raise UsageError(f"guide {label!r} needs a target", hint="such as target=3")
    plugins = registry()
    named = None
    if isinstance(loss, str):
        named = plugins.spec("loss", loss)
        made: TaskLoss = plugins.make(named, {})
    else:
        made = loss if isinstance(loss, TaskLoss) else FunctionLoss(loss)
    if not isinstance(source, GuidanceModel):
        source = ModuleGuide(source, mean=mean, std=std, size=size)
    given = decode_target(target)
    pull, request = requested(scale, experts, allow_mismatch)
    request.check(label)
    return LoadedGuide(
        guide=Guide(
            name=label,
            model=source,
            loss=made,
            target=source.target(given),
            scale=pull,
            interval=interval,
        ),
        origin=Origin(
            component=label,
            weights_sha256=own_sha256(source),
            suppliers=suppliers(plugins, named),
        ),
        loss_name=loss_name(loss),
        target_source=given.source,
        experts=request,
    )
