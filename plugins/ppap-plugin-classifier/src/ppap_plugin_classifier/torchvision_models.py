"""From "torchvision/NAME", and weights, to a classifier of torchvision, with what it is fed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.transforms import InterpolationMode

from ppap_framework.author import (
    Checkpoint,
    Preprocessing,
    UsageError,
    downloading,
    in_torch_hub,
    load_into,
)

__all__ = ["from_checkpoint", "from_torchvision", "of_torchvision"]

_Loaded = tuple[nn.Module, Sequence[str], Preprocessing]

_PREFIX = "torchvision/"  # timm calls others the same


def of_torchvision(model: str | None) -> bool:
    """Whether a name is meant for this library."""
    return model is not None and model.startswith(_PREFIX)


def from_checkpoint(checkpoint: Checkpoint, model: str) -> _Loaded:
    """Build the named model with as many classes as a state dict of torchvision has.

    Raises:
        UsageError: If torchvision has no such classifier.
        AssetError: If the weights do not fit it.
    """
    name = _known(model)
    state = checkpoint.state_dict()
    last = next(reversed(state.values()), torch.zeros(1))  # of the head, in all of them
    number = len(last) if last.ndim else 1
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # as torchvision builds them for its own weights
        auxiliary = any(key.lower().startswith("aux") for key in state)
        options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}
    network = get_model(name, weights=None, num_classes=number, **options)
    load_into(network, checkpoint)
    weights = get_model_weights(name).DEFAULT
    known = list(weights.meta["categories"])
    names = known if len(known) == number else [f"class {index}" for index in range(number)]
    return network.eval(), names, _preprocessing(weights)


def from_torchvision(model: str) -> _Loaded:
    """A model with torchvision's weights, downloaded by torchvision where they are not yet here.

    Raises:
        UsageError: If torchvision has no such classifier.
        AssetError: If its weights cannot be downloaded; names the address.
    """
    name = _known(model)
    weights = get_model_weights(name).DEFAULT
    hint = f"download {weights.url} elsewhere, then add --guider-checkpoint FILE"
    with downloading(f"torchvision's weights of {model!r}", hint, here=in_torch_hub(weights.url)):
        network = get_model(name, weights=weights, progress=False)
    return network.eval(), list(weights.meta["categories"]), _preprocessing(weights)


def _known(model: str) -> str:
    """torchvision's own name of one of its classifiers."""
    name = model.removeprefix(_PREFIX)
    names = list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        raise UsageError(
            f"torchvision {torchvision.__version__} has no classifier {name!r}",
            hint=f"did you mean {', '.join(_PREFIX + each for each in close)}?"
            if close
            else "torchvision.models.list_models() lists all",
        )
    return name


def _preprocessing(weights: Any) -> Preprocessing:
    """What torchvision does to images before these weights, but for the crop."""
    transforms = weights.transforms()
    bicubic = transforms.interpolation == InterpolationMode.BICUBIC
    return Preprocessing(
        size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation="bicubic" if bicubic else "bilinear",
    )
