"""From a folder, a name of the hub or a checkpoint to a classifier of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ppap_framework.author import Checkpoint, Preprocessing
from ppap_transformers import find_model, load_network, make_input

__all__ = ["from_transformers", "of_transformers"]


def of_transformers(model: str | None, checkpoint: Checkpoint | None) -> bool:
    """Whether a name is a folder or "owner/name", or a checkpoint says a config of transformers."""
    if checkpoint is not None and checkpoint.architecture:
        return "config" in checkpoint.architecture
    if model is None:  # only files that lie beside their config can be of one
        return checkpoint is not None and (checkpoint.path.parent / "config.json").is_file()
    return ":" not in model and ("/" in model or Path(model).expanduser().is_dir())


def from_transformers(
    model: str | None, checkpoint: Checkpoint | None
) -> tuple[nn.Module, Sequence[str], Preprocessing]:
    """The network, the names of its classes and what it is fed.

    Raises:
        UsageError: If the two contradict each other, or the name is none.
        AssetError: If files are missing, damaged, do not fit, or cannot be had.
    """
    files = find_model(model, checkpoint)
    network: Any = load_network(files, "image-classification")
    known = network.config.id2label
    names = [str(known.get(index, f"class {index}")) for index in range(network.config.num_labels)]
    return network, names, make_input(files).preprocessing()
