"""Builds timm models by name or from a checkpoint, with preprocessing and class names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import timm
from attrs.validators import and_, deep_iterable, gt, instance_of, max_len, min_len, optional
from timm.data import create_transform, resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    ImageInput,
    Preprocessing,
    UsageError,
    downloading,
    in_torch_hub,
    load_into,
    read_architecture,
)

__all__ = ["from_checkpoint", "from_hub"]

_Loaded = tuple[nn.Module, Sequence[str], Preprocessing | ImageInput]

_number = instance_of((int, float))
_three: Any = (min_len(3), max_len(3))  # one for each channel


@attrs.frozen(kw_only=True)
class _Architecture:
    """Architecture record of a checkpoint; the defaults of all but the model are timm's."""

    model: str = attrs.field(validator=instance_of(str))
    model_args: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    class_names: Sequence[str] | None = attrs.field(
        default=None, validator=optional(deep_iterable(instance_of(str), instance_of(list)))
    )
    input_size: int | None = attrs.field(
        default=None, validator=optional(and_(instance_of(int), gt(0)))
    )
    mean: Sequence[float] | None = attrs.field(
        default=None, validator=optional(and_(*_three, deep_iterable(_number)))
    )
    std: Sequence[float] | None = attrs.field(
        default=None, validator=optional(and_(*_three, deep_iterable(and_(_number, gt(0)))))
    )

    @model.validator
    def _known_to_timm(self, _: object, value: str) -> None:
        if not timm.is_model(value) or ":" in value:
            raise ValueError(f"timm {timm.__version__} has no model {value!r}")

    @model_args.validator
    def _only_the_networks_own(self, _: object, value: Mapping[str, Any]) -> None:
        # A file may configure the network, but must not make timm load other weights.
        if foreign := {"checkpoint_path", "cache_dir"} & set(value) | {
            name for name in value if name.startswith("pretrained")
        }:
            raise ValueError(f"model_args may not hold {', '.join(sorted(foreign))}")


def from_checkpoint(checkpoint: Checkpoint, model: str | None) -> _Loaded:
    """Build the model of a checkpoint and load its weights.

    Raises:
        UsageError: If `model` is unknown, contradicts the checkpoint, or is missing.
        AssetError: If the checkpoint's architecture cannot be built or its weights do not fit.
    """
    if not checkpoint.architecture:
        if model is None:
            raise UsageError(
                f"{checkpoint.name!r} does not say of which model it is",
                hint="name the timm model with --guider-model",
            )
        _check_known(model, hub=False)
        stated = _Architecture(model=model)
    else:
        stated = read_architecture(checkpoint, _Architecture)
        if model is not None and _bare(model) != _bare(stated.model):
            raise UsageError(
                f"{checkpoint.name!r} is a {stated.model}, not a {model}",
                hint="leave --guider-model out",
            )
    arguments = dict(stated.model_args)
    if stated.class_names is not None:
        arguments["num_classes"] = len(stated.class_names)
    elif (number := _num_classes(stated.model, checkpoint)) is not None:
        arguments.setdefault("num_classes", number)
    try:
        network = timm.create_model(stated.model, pretrained=False, **arguments)
    except Exception as error:  # timm models raise various errors for unknown arguments
        reason = " ".join(str(error).split())
        raise AssetError(
            f"{checkpoint.name!r} cannot be built as timm model {stated.model!r}: {reason}",
            hint="its architecture is stated wrongly, or this timm is of another version",
        ) from error
    load_into(network, checkpoint)
    given = {name: getattr(stated, name) for name in ("mean", "std") if getattr(stated, name)}
    if "img_size" in arguments:  # of which the network's own record says nothing
        side = arguments["img_size"]
        given["input_size"] = (3, *((side, side) if isinstance(side, int) else side))
    shown = _input(network, given, stated.input_size)
    return network, stated.class_names or _class_names(network), shown


def from_hub(model: str) -> _Loaded:
    """A timm model with its pretrained weights, downloaded if necessary.

    Raises:
        UsageError: If the model is unknown to timm, has no weights, or has no classes.
        AssetError: If the weights cannot be downloaded; the hint names the URL.
    """
    _check_known(model, hub=True)
    hint = f"download {_address(model)} elsewhere, then add --guider-checkpoint FILE"
    config = None if ":" in model else timm.get_pretrained_cfg(model)
    here = config is None or bool(config.hf_hub_id) or in_torch_hub(config.url or "")
    with downloading(f"timm's weights of {model!r}", hint, here=here):
        network = timm.create_model(model, pretrained=True)
    return network, _class_names(network), _input(network, {}, None)


def _check_known(model: str, *, hub: bool) -> None:
    """Refuse unknown names; names with a colon are hub names and are not checked."""
    if ":" in model:
        return
    bare = _bare(model)
    if not timm.is_model(bare):
        close = difflib.get_close_matches(bare, timm.list_models(), n=3)
        raise UsageError(
            f"timm {timm.__version__} has no model {model!r}",
            hint=f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all",
        )
    tagged = [name for name in timm.list_pretrained(f"{bare}.*") if _bare(name) == bare]
    if model != bare and model not in tagged:
        raise UsageError(
            f"timm has no weights {model!r}", hint=f"it has {', '.join(tagged) or 'none'}"
        )
    if hub and not tagged:
        raise UsageError(
            f"timm has no pretrained weights for {model!r}",
            hint="name another model, or add --guider-checkpoint PATH",
        )
    config = timm.get_pretrained_cfg(model)
    if hub and config is not None and config.num_classes == 0:
        raise _no_classes(model)


def _bare(model: str) -> str:
    """The name without the tag of its weights."""
    return model.partition(".")[0]


def _address(model: str) -> str:
    if ":" in model:
        return f"https://huggingface.co/{model.partition(':')[2]}"
    config = timm.get_pretrained_cfg(model)
    if config is not None and config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
    return str(config.url) if config is not None else model


def _num_classes(model: str, checkpoint: Checkpoint) -> int | None:
    """Number of classes of the checkpoint's head; None if timm does not name the head."""
    config = timm.get_pretrained_cfg(_bare(model))
    head = config.classifier if config is not None else None
    name = head[0] if isinstance(head, tuple | list) else head
    weight = checkpoint.state_dict().get(f"{name}.weight")
    return None if weight is None else len(weight)


def _input(
    network: nn.Module, given: dict[str, Any], side: int | None
) -> Preprocessing | ImageInput:
    """timm's evaluation transforms; with a stated side, the whole image at that side.

    Args:
        network: The network, whose own record says the rest.
        given: timm's names and values that replace those of the record.
        side: Side in pixels that the checkpoint states.
    """
    config: dict[str, Any] = resolve_data_config(given, model=network)
    mean, std = config["mean"], config["std"]
    if side is not None:
        how: Any = config["interpolation"]
        return Preprocessing(size=side, mean=mean, std=std, interpolation=how)
    moves = [step for step in create_transform(**config).transforms if _moves(step)]

    def resize(images: Tensor) -> Tensor:
        values = (images + 1) * 127.5  # a border that timm adds has a colour in these units
        for step in moves:
            values = step(values)
        return values / 127.5 - 1

    height, width = config["input_size"][-2:]
    size = height if height == width else None
    return ImageInput(size=size, mean=mean, std=std, resize=resize)


def _moves(step: Any) -> bool:
    """Whether a transform moves pixels; the others convert and normalize."""
    return not type(step).__name__.endswith(("ToTensor", "Normalize"))


def _no_classes(model: str) -> UsageError:
    return UsageError(
        f"timm model {model!r} has no classes, it gives features only",
        hint="name one with a classifier, such as resnet50",
    )


def _class_names(network: Any) -> list[str]:
    """timm's class names of a model; numbers if it has none."""
    if not network.num_classes:
        raise _no_classes(network.pretrained_cfg["architecture"])
    labels = network.pretrained_cfg.get("label_names") or ()
    if len(labels) == network.num_classes:
        descriptions = network.pretrained_cfg.get("label_descriptions") or {}
        return [descriptions.get(label, label) for label in labels]
    if (subset := infer_imagenet_subset(network)) is not None:
        return list(ImageNetInfo(subset).label_descriptions())
    return [f"class {index}" for index in range(network.num_classes)]
