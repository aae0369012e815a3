"""Builds networks of transformers from a config and tensors."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import nn

from ppap_framework.checkpoints import Checkpoint, counted
from ppap_framework.errors import AssetError

__all__ = ["Task", "load_network", "make_config", "quiet"]

_log = logging.getLogger(__name__)

Task: TypeAlias = Literal[
    "depth-estimation",
    "image-classification",
    "object-detection",
    "semantic-segmentation",
    "universal-segmentation",
    "zero-shot-image-classification",
]
"""A task for which transformers has a family of classes."""


def load_network(model: Checkpoint, task: Task, *, unused: str | None = None) -> nn.Module:
    """Build a model in float32, on the CPU and in evaluation mode, with its weights.

    transformers renames parameters of its older versions. Unused tensors are logged; missing ones
    are an error.

    Args:
        model: Model from `find_model`.
        task: Task of the network.
        unused: Regular expression for the beginning of names of parameters that the network never
            uses. They may be missing, and become 0.

    Raises:
        AssetError: If the config is for another task or needs external code or files, or the
            weights do not fit.
    """
    import transformers

    config = make_config(model)
    family = getattr(transformers, f"MODEL_FOR_{task.upper().replace('-', '_')}_MAPPING")
    if type(config) not in family:
        known = ", ".join(sorted(kind.model_type for kind in family))
        raise AssetError(
            f"{model.name!r} is a {config.model_type}, which does no {task.replace('-', ' ')}",
            hint=f"transformers {transformers.__version__} has {known} for that",
        )
    classes = family[type(config)]
    if isinstance(classes, tuple):  # those with another head, or another first layer
        stated = {own.__name__: own for own in classes}
        name = next((name for name in config.architectures or () if name in stated), None)
        classes = classes[0] if name is None else stated[name]
    state = model.state_dict()
    try:
        with quiet():
            network, told = classes.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # reported, and refused below
                output_loading_info=True,
            )
    except Exception as error:  # networks raise various errors for invalid sizes
        raise _unfit(model, error) from error
    left_out = {name for name in told["missing_keys"] if unused and re.match(unused, name)}
    for name in left_out:
        nn.init.zeros_(network.get_parameter(name))
    kind = type(network).__name__
    faults = {
        "missing": sorted(set(told["missing_keys"]) - left_out),
        "of another shape": [
            f"{name} {tuple(there)} instead of {tuple(own)}"
            for name, there, own in sorted(told["mismatched_keys"])
        ],
    }
    if any(faults.values()):
        raise AssetError(
            f"the weights of {model.name!r} do not fit {kind}: {counted(faults)}",
            hint="config and weights are of different models",
        )
    if extra := sorted(told["unexpected_keys"]):
        _log.warning(
            "%r: %s does not use %d tensors, such as %s", model.name, kind, len(extra), extra[0]
        )
    return cast("nn.Module", network.eval())


def make_config(model: Checkpoint) -> Any:
    """The config as an object of transformers.

    Raises:
        AssetError: If the model type is unknown, or needs external code or files.
    """
    import transformers

    stated = dict(model.architecture["config"])
    kind = stated.pop("model_type", None)
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        version = f"transformers {transformers.__version__}"
        if "auto_map" in stated:
            raise AssetError(
                f"{model.name!r} wants code of its own to be run; nothing was run",
                hint=f"model type {kind!r} is none of {version}; name another model",
            )
        raise AssetError(
            f"{model.name!r} is of model type {kind!r}, which {version} does not know",
            hint="its config is damaged or newer; name another model",
        )
    try:
        with quiet():
            return transformers.CONFIG_MAPPING[kind](**_self_contained(model, stated))
    except AssetError:
        raise
    except Exception as error:  # each config class has its own checks
        raise _unfit(model, error) from error


def _self_contained(model: Checkpoint, stated: Mapping[str, Any]) -> dict[str, Any]:
    """A config without external code or other models, at any depth."""
    if isinstance(stated.get("backbone"), str) and not stated.get("use_timm_backbone"):
        raise AssetError(
            f"{model.name!r} names backbone {stated['backbone']!r} instead of describing it",
            hint="load it with transformers and save it again: its config is then complete",
        )
    inner = {
        name: _self_contained(model, value) if isinstance(value, dict) else value
        for name, value in stated.items()
        if name not in ("auto_map", "torch_dtype", "dtype")
    }
    if "use_pretrained_backbone" in inner:
        inner["use_pretrained_backbone"] = False
    return inner


def _unfit(model: Checkpoint, error: Exception) -> AssetError:
    reason = " ".join(str(error).split())[:300]
    return AssetError(
        f"{model.name!r} cannot be built as its config says: {type(error).__name__}: {reason}",
        hint="the config is wrong, or this transformers is of another version",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers neither logs nor shows progress."""
    from transformers.utils import logging as hf_logging

    verbosity, progress = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if progress:
            hf_logging.enable_progress_bar()
