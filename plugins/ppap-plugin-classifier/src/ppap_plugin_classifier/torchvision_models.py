"""Builds and loads torchvision's classifiers, named "torchvision/NAME"."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.transforms import InterpolationMode, functional

from ppap_framework.author import (
    Checkpoint,
    ImageInput,
    UsageError,
    downloading,
    in_torch_hub,
    load_into,
)

__all__ = ["from_checkpoint", "from_torchvision", "of_torchvision"]

_Loaded = tuple[nn.Module, Sequence[str], ImageInput]

_PREFIX = "torchvision/"  # timm has models of the same names


def of_torchvision(model: str | None) -> bool:
    """Whether a name is one of torchvision's."""
    return model is not None and model.startswith(_PREFIX)


def from_checkpoint(checkpoint: Checkpoint, model: str) -> _Loaded:
    """Build the named model and load a torchvision state dict with any number of classes.

    The file does not say how its network was shown images, so they are shown whole.

    Raises:
        UsageError: If torchvision has no such classifier.
        AssetError: If the weights do not fit it.
    """
    name = _known(model)
    state = checkpoint.state_dict()
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # as for torchvision's weights
        auxiliary = any(key.lower().startswith("aux") for key in state)
        options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}
    with torch.device("meta"):
        own = get_model(name, weights=None, **options).state_dict()
    last = next(reversed(own))  # the head's bias; files may sort their names, and add a prefix
    head = next((x for key, x in state.items() if key.endswith(last)), torch.zeros(1000))
    number = len(head) if head.ndim else 1
    network = get_model(name, weights=None, num_classes=number, **options)
    load_into(network, checkpoint)
    weights = get_model_weights(name).DEFAULT
    known = list(weights.meta["categories"])
    names = known if len(known) == number else [f"class {index}" for index in range(number)]
    return network.eval(), names, _input(weights, whole=True)


def from_torchvision(model: str) -> _Loaded:
    """A model with torchvision's weights, downloaded if necessary.

    Raises:
        UsageError: If torchvision has no such classifier.
        AssetError: If its weights cannot be downloaded; the hint names the URL.
    """
    name = _known(model)
    weights = get_model_weights(name).DEFAULT
    hint = f"download {weights.url} elsewhere, then add --guider-checkpoint FILE"
    with downloading(f"torchvision's weights of {model!r}", hint, here=in_torch_hub(weights.url)):
        network = get_model(name, weights=weights, progress=False)
    return network.eval(), list(weights.meta["categories"]), _input(weights, whole=False)


def _known(model: str) -> str:
    """Return the name without prefix; raise UsageError for an unknown one."""
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


def _input(weights: Any, *, whole: bool) -> ImageInput:
    """torchvision's transforms of these weights, or without their crop, `whole`."""
    stated = weights.transforms()
    if whole:
        bicubic = stated.interpolation == InterpolationMode.BICUBIC
        return ImageInput(
            size=stated.crop_size[0],
            mean=stated.mean,
            std=stated.std,
            interpolation="bicubic" if bicubic else "bilinear",
        )

    def resize(images: Tensor) -> Tensor:
        how = {"interpolation": stated.interpolation, "antialias": stated.antialias}
        resized = functional.resize(images, stated.resize_size, **how)
        cropped: Tensor = functional.center_crop(resized, stated.crop_size)
        return cropped

    return ImageInput(size=stated.crop_size[0], mean=stated.mean, std=stated.std, resize=resize)
