"""Builds and loads torchvision's segmentation networks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import attrs
import torchvision
from attrs.validators import and_, deep_iterable, gt, instance_of, max_len, min_len, optional
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    ImageInput,
    UsageError,
    downloading,
    in_torch_hub,
    load_into,
    read_architecture,
)

__all__ = ["PREFIX", "from_checkpoint", "from_torchvision", "model_names", "unknown_model"]

_Loaded = tuple[nn.Module, Sequence[str], ImageInput]

PREFIX = "torchvision/"  # optional prefix of names; classifiers require it

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for all models
_SIZE = 520  # input size of all models
_HEADS = {"lraspp": "classifier.low_classifier.weight"}
_HEAD = "classifier.4.weight"
_AUXILIARY = "aux_classifier."

_number = instance_of((int, float))
_three: Any = (min_len(3), max_len(3))  # one for each channel


def model_names() -> list[str]:
    """Segmentation models of the installed torchvision."""
    names: list[str] = list_models(module=torchvision.models.segmentation)
    return names


@attrs.frozen(kw_only=True)
class _Architecture:
    """Architecture record of a checkpoint; only the model is required."""

    model: str = attrs.field(validator=instance_of(str))
    class_names: Sequence[str] | None = attrs.field(
        default=None, validator=optional(deep_iterable(instance_of(str), instance_of(list)))
    )
    input_size: int = attrs.field(default=_SIZE, validator=and_(instance_of(int), gt(0)))
    mean: Sequence[float] = attrs.field(
        default=_MEAN, validator=and_(*_three, deep_iterable(_number))
    )
    std: Sequence[float] = attrs.field(
        default=_STD, validator=and_(*_three, deep_iterable(and_(_number, gt(0))))
    )

    @model.validator
    def _known_to_torchvision(self, _: object, value: str) -> None:
        if value not in model_names():
            raise ValueError(f"torchvision {torchvision.__version__} has no model {value!r}")


def from_checkpoint(checkpoint: Checkpoint, model: str | None, size: int | None) -> _Loaded:
    """Build the model of a checkpoint and load its weights.

    Args:
        checkpoint: State dict with any number of classes.
        model: Model name, required if the checkpoint does not state it.
        size: Input side in pixels; overrides the stated one.

    Raises:
        UsageError: If `model` is unknown or contradicts the checkpoint.
        AssetError: If the architecture is invalid, or the weights do not fit it.
    """
    if checkpoint.architecture:
        stated = read_architecture(checkpoint, _Architecture)
        if model not in (None, stated.model):
            raise UsageError(
                f"{checkpoint.name!r} is a {stated.model}, not a {model}",
                hint="leave --guider-model out",
            )
    else:
        assert model is not None
        stated = _Architecture(model=model)
    state = checkpoint.state_dict()
    head = _HEADS.get(stated.model.partition("_")[0], _HEAD)
    if head not in state:
        raise AssetError(
            f"{checkpoint.name!r} does not fit {stated.model}: it has no {head!r}",
            hint="it is of another model",
        )
    auxiliary = any(name.startswith(_AUXILIARY) for name in state)
    extra = {"aux_loss": True} if auxiliary and "lraspp" not in stated.model else {}
    classes = len(state[head])
    network = get_model(
        stated.model, weights=None, weights_backbone=None, num_classes=classes, **extra
    )
    load_into(network, checkpoint)
    names = stated.class_names or _class_names(stated.model, classes)
    if len(names) != classes:
        raise AssetError(
            f"{checkpoint.name!r} names {len(names)} classes and has {classes}",
            hint="correct its class_names and save it again",
        )
    return _without_auxiliary(network), names, _input(size or stated.input_size, stated)


def from_torchvision(model: str, size: int | None) -> _Loaded:
    """A model with torchvision's weights, downloaded if necessary.

    Raises:
        AssetError: If the weights cannot be downloaded; the hint names the URL.
    """
    weights = get_model_weights(model).DEFAULT
    hint = f"download {weights.url} elsewhere, then add --guider-checkpoint FILE"
    with downloading(f"torchvision's weights of {model!r}", hint, here=in_torch_hub(weights.url)):
        network = get_model(model, weights=weights, progress=False)
    stated = _Architecture(model=model)
    names = list(weights.meta["categories"])
    return _without_auxiliary(network.eval()), names, _input(size or _SIZE, stated)


def unknown_model(model: str) -> UsageError:
    """Error for an unknown model; the hint lists similar names."""
    names = model_names()
    close = difflib.get_close_matches(model, names, n=3) or names
    return UsageError(
        f"torchvision {torchvision.__version__} has no segmentation model {model!r}, and there is "
        "no such folder",
        hint=f"it has {', '.join(close)}; of transformers give a folder, or owner/name of the hub",
    )


def _without_auxiliary(network: Any) -> nn.Module:
    """Remove the auxiliary head, which only training needs."""
    if "aux_classifier" in network._modules:
        network.aux_classifier = None
    module: nn.Module = network
    return module


def _input(size: int, stated: _Architecture) -> ImageInput:
    return ImageInput(size=size, mean=stated.mean, std=stated.std)


def _class_names(model: str, number: int) -> list[str]:
    """torchvision's class names if their number matches, else numbers."""
    known = list(get_model_weights(model).DEFAULT.meta["categories"])
    return known if len(known) == number else [f"class {index}" for index in range(number)]
