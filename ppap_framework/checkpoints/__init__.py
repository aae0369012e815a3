"""Checkpoints: weights are found, verified and loaded; no code that comes with them is run.

A checkpoint is one file of tensors, or several, and an *architecture*: a JSON object from which a
component's factory builds the network. Files that this project writes are safetensors and carry the
architecture under the metadata key `ppap.architecture`; for other files a card states it.

    checkpoint = open_checkpoint("weights.safetensors")        # or a Card; reads only the header
    architecture = read_architecture(checkpoint, Architecture)  # an attrs class
    network = build(architecture)
    load_into(network, checkpoint)

Every fault of a file is an `AssetError` of one line.
"""

from __future__ import annotations

from ppap_framework.checkpoints._checkpoint import (
    Checkpoint,
    join_checkpoints,
    open_checkpoint,
    read_architecture,
    save_checkpoint,
)
from ppap_framework.checkpoints._choice import find_checkpoint
from ppap_framework.checkpoints._fetch import (
    check,
    fetch,
    location,
    noted_sha256,
    package_file,
)
from ppap_framework.checkpoints._load import counted, load_into, misfits
from ppap_framework.checkpoints._offline import (
    downloading,
    downloads_are_off,
    in_torch_hub,
    without_downloads,
)
from ppap_framework.checkpoints._tensor_file import write_safetensors

__all__ = [
    "Checkpoint",
    "check",
    "counted",
    "downloading",
    "downloads_are_off",
    "fetch",
    "find_checkpoint",
    "in_torch_hub",
    "join_checkpoints",
    "load_into",
    "location",
    "misfits",
    "noted_sha256",
    "open_checkpoint",
    "package_file",
    "read_architecture",
    "save_checkpoint",
    "without_downloads",
    "write_safetensors",
]
