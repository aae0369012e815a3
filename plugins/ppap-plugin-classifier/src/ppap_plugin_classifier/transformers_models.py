"""Loads classifiers of transformers from a folder, the hub or a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from ppap_framework.author import Checkpoint, ImageInput
from ppap_transformers import find_model, load_network, make_input

__all__ = ["from_transformers", "of_transformers"]


def of_transformers(model: str | None, checkpoint: Checkpoint | None) -> bool:
    """Whether the name is a folder or "owner/name", or the checkpoint has a transformers config."""
    if checkpoint is not None and checkpoint.architecture:
        return "config" in checkpoint.architecture
    if model is None:  # without a name, config.json must lie beside the file
        return checkpoint is not None and (checkpoint.path.parent / "config.json").is_file()
    place = os.path.expanduser(model)  # noqa: PTH111  # pathlib's raises
    return ":" not in model and ("/" in model or os.path.isdir(place))  # noqa: PTH112  # the same


def from_transformers(
    model: str | None, checkpoint: Checkpoint | None
) -> tuple[nn.Module, Sequence[str], ImageInput]:
    """The network, its class names and its input.

    Raises:
        UsageError: If model and checkpoint contradict each other, or the name is invalid.
        AssetError: If files are missing, damaged, do not fit, or are unavailable.
    """
    files = find_model(model, checkpoint)
    network: Any = load_network(files, "image-classification")
    known = network.config.id2label or {}
    names = [str(known.get(index, f"class {index}")) for index in range(network.config.num_labels)]
    return network, names, make_input(files)
