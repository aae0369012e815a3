"""From a config and tensors to a network, by transformers' own classes."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import nn

from ppap_framework.errors import AssetError
from ppap_framework.transformers_models._files import ModelFiles

__all__ = ["Task", "load_network", "make_config"]

_log = logging.getLogger(__name__)

Task: TypeAlias = Literal[
    "depth-estimation", "image-classification", "semantic-segmentation", "universal-segmentation"
]
"""What transformers has a family of classes for."""

_FAMILIES: Mapping[Task, str] = {
    "depth-estimation": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "semantic-segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
    "universal-segmentation": "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING",
}


def load_network(files: ModelFiles, task: Task, *, unused: str | None = None) -> nn.Module:
    """Build a model in float32, on the CPU and in evaluation mode, and give it its weights.

    transformers renames what older versions of it called otherwise. Tensors that the network has no
    use for are logged; none that it uses may be missing.

    Args:
        files: The model.
        task: What it must do.
        unused: A regular expression for the beginnings of names of parameters that the network has
            and never uses, so that published files leave them out. They become 0, to be the same
            every time.

    Raises:
        AssetError: Where the config is of no such network or wants code or files from elsewhere, or
            the weights do not fit.
    """
    import transformers

    config = make_config(files)
    family = getattr(transformers, _FAMILIES[task])
    if type(config) not in family:
        known = ", ".join(sorted(kind.model_type for kind in family))
        raise AssetError(
            f"{files.name!r} is a {config.model_type}, which does no {task.replace('-', ' ')}",
            hint=f"transformers {transformers.__version__} has {known} for that",
        )
    state = files.state_dict()
    try:
        with _quiet():
            network, told = family[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # it tells of them, and they are refused here
                output_loading_info=True,
            )
    except Exception as error:  # whatever a network says to sizes that cannot be
        raise _unfit(files, error) from error
    left_out = {name for name in told["missing_keys"] if unused and re.match(unused, name)}
    for name in left_out:
        nn.init.zeros_(network.get_parameter(name))
    _check(files, type(network).__name__, told, left_out)
    network.eval()
    return cast("nn.Module", network)


def make_config(files: ModelFiles) -> Any:
    """The config as transformers' own class, `PretrainedConfig` by its old name.

    Raises:
        AssetError: Where it is none that transformers knows, or wants code or files from elsewhere.
    """
    import transformers

    stated = dict(files.config)
    kind = stated.pop("model_type", None)
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        if "auto_map" in stated:
            raise AssetError(
                f"{files.name!r} wants code of its own to be run; nothing was run",
                hint=f"model type {kind!r} is none of transformers {transformers.__version__};"
                " name another model",
            )
        raise AssetError(
            f"{files.name!r} is of model type {kind!r}, which transformers"
            f" {transformers.__version__} does not know",
            hint="its config is damaged or newer; name another model",
        )
    try:
        with _quiet():
            return transformers.CONFIG_MAPPING[kind](**_by_itself(files, stated))
    except AssetError:
        raise
    except Exception as error:  # each config has checks of its own
        raise _unfit(files, error) from error


def _by_itself(files: ModelFiles, stated: Mapping[str, Any]) -> dict[str, Any]:
    """A config that runs no code and sends for no other model, however deep it says so."""
    if isinstance(stated.get("backbone"), str) and not stated.get("use_timm_backbone"):
        raise AssetError(
            f"{files.name!r} names backbone {stated['backbone']!r} instead of describing it",
            hint="load it with transformers and save it again: its config is then complete",
        )
    inner = {
        name: _by_itself(files, value) if isinstance(value, dict) else value
        for name, value in stated.items()
        if name not in ("auto_map", "torch_dtype", "dtype")
    }
    if "use_pretrained_backbone" in inner:
        inner["use_pretrained_backbone"] = False
    return inner


def _unfit(files: ModelFiles, error: Exception) -> AssetError:
    reason = " ".join(str(error).split())[:300]
    return AssetError(
        f"{files.name!r} cannot be built as its config says: {type(error).__name__}: {reason}",
        hint="the config is wrong, or this transformers is of another version",
    )


def _check(files: ModelFiles, kind: str, told: Mapping[str, Any], left_out: set[str]) -> None:
    """Refuse a network of which not every tensor comes from the files."""
    reshaped = [
        f"{name} {tuple(there)} instead of {tuple(own)}"
        for name, there, own in sorted(told["mismatched_keys"])
    ]
    faults = [
        f"{len(names)} {fault} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for fault, names in (
            ("missing", sorted(set(told["missing_keys"]) - left_out)),
            ("of another shape", reshaped),
        )
        if names
    ]
    if faults:
        raise AssetError(
            f"the weights of {files.name!r} do not fit {kind}: {'; '.join(faults)}",
            hint="config and weights are of different models",
        )
    if extra := sorted(told["unexpected_keys"]):
        _log.warning(
            "%r: %s has no use for %d tensors, such as %s", files.name, kind, len(extra), extra[0]
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which transformers neither logs nor shows progress."""
    from transformers.utils import logging as told

    verbosity, progress = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(told.CRITICAL)
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(verbosity)
        if progress:
            told.enable_progress_bar()
