"""Builds timm networks by name or from a checkpoint, with their preprocessing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import timm
from attrs.validators import and_, deep_iterable, gt, instance_of, max_len, min_len, optional
from timm.data.config import resolve_model_data_config
from torch import nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    Preprocessing,
    UsageError,
    downloading,
    load_into,
    read_architecture,
)

__all__ = ["load_backbone"]

_numbers: Any = and_(min_len(3), max_len(3), deep_iterable(instance_of((int, float))))


@attrs.frozen(kw_only=True)
class _Architecture:
    """The record of a checkpoint, as classifiers have it; defaults of the last three are timm's."""

    model: str = attrs.field(validator=instance_of(str))
    model_args: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    class_names: Sequence[str] | None = attrs.field(
        default=None, validator=optional(instance_of(list))
    )
    input_size: int | None = attrs.field(
        default=None, validator=optional(and_(instance_of(int), gt(0)))
    )
    mean: Sequence[float] | None = attrs.field(default=None, validator=optional(_numbers))
    std: Sequence[float] | None = attrs.field(default=None, validator=optional(_numbers))

    @model_args.validator
    def _only_the_networks_own(self, _: object, value: Mapping[str, Any]) -> None:
        # A file may configure the network, but must not make timm load other weights.
        if foreign := {"checkpoint_path", "cache_dir"} & set(value) | {
            name for name in value if name.startswith("pretrained")
        }:
            raise ValueError(f"model_args may not hold {', '.join(sorted(foreign))}")


def load_backbone(
    model: str | None, checkpoint: Checkpoint | None, size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """A timm network with its weights, and the preprocessing that it wants.

    Args:
        model: Name of a timm model; if there is no checkpoint, its weights are downloaded.
        checkpoint: Weights that state their architecture, or belong to `model`.
        size: Input side in pixels, instead of the network's own.

    Raises:
        UsageError: If no model is named, it is unknown, or contradicts the checkpoint.
        AssetError: If the weights do not fit or cannot be downloaded.
    """
    if checkpoint is None and model is None:
        raise UsageError(
            "no network is named",
            hint="type --guider-model resnet50 or vit_small_patch16_224.dino, or"
            " --guider-checkpoint PATH",
        )
    if checkpoint is not None and checkpoint.architecture:
        stated = read_architecture(checkpoint, _Architecture)
        if model is not None and _bare(model) != _bare(stated.model):
            raise UsageError(
                f"{checkpoint.name!r} is a {stated.model}, not a {model}",
                hint="leave --guider-model out",
            )
    else:
        if model is None:
            raise UsageError(
                f"{checkpoint and checkpoint.name!r} does not say of which model it is",
                hint="name the timm model with --guider-model",
            )
        stated = _Architecture(model=model)
    _check_known(stated.model, pretrained=checkpoint is None)
    config = timm.get_pretrained_cfg(stated.model)
    arguments = dict(stated.model_args)
    if size is not None and config is not None and config.fixed_input_size:
        arguments["img_size"] = size
    if checkpoint is None:
        hint = "download them elsewhere, then add --guider-checkpoint FILE"
        with downloading(f"timm's weights of {stated.model!r}", hint):
            network = timm.create_model(stated.model, pretrained=True, **arguments)
    else:
        arguments |= _classes(stated, checkpoint)
        try:
            network = timm.create_model(stated.model, pretrained=False, **arguments)
        except Exception as error:  # timm models raise various errors for unknown arguments
            reason = " ".join(str(error).split())
            raise AssetError(
                f"{checkpoint.name!r} cannot be built as timm model {stated.model!r}: {reason}",
                hint="its architecture is stated wrongly, or this timm is of another version",
            ) from error
        load_into(network, checkpoint)
    resolved: dict[str, Any] = resolve_model_data_config(network)
    return network, Preprocessing(
        size=size or stated.input_size or resolved["input_size"][-1],
        mean=stated.mean or resolved["mean"],
        std=stated.std or resolved["std"],
        interpolation="bilinear" if resolved["interpolation"] == "bilinear" else "bicubic",
    )


def _bare(model: str) -> str:
    """The name without the tag of its weights."""
    return model.partition(".")[0]


def _check_known(model: str, *, pretrained: bool) -> None:
    bare = _bare(model)
    if not timm.is_model(bare) or ":" in model:
        close = difflib.get_close_matches(bare, timm.list_models(), n=3)
        raise UsageError(
            f"timm {timm.__version__} has no model {model!r}",
            hint=f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all",
        )
    tagged = [name for name in timm.list_pretrained(f"{bare}.*") if _bare(name) == bare]
    if (pretrained and not tagged) or (model != bare and model not in tagged):
        raise UsageError(
            f"timm has no weights {model!r}", hint=f"it has {', '.join(tagged) or 'none'}"
        )


def _classes(stated: _Architecture, checkpoint: Checkpoint) -> dict[str, int]:
    """The number of classes of the checkpoint's head, which is removed after loading."""
    config = timm.get_pretrained_cfg(_bare(stated.model))
    head = config.classifier if config is not None else None
    name = head[0] if isinstance(head, tuple | list) else head
    weight = checkpoint.state_dict().get(f"{name}.weight")
    return {"num_classes": 0 if weight is None else len(weight)}
