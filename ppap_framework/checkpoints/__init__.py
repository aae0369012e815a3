"""Checkpoints: finding, verifying and loading weights, never running code that comes with them.

A checkpoint is a file of tensors and the *architecture*: a JSON object from which a component's
factory builds the network. Files that this project writes are safetensors and carry it themselves,
under the metadata key `ppap.architecture`; for others it stands on the card.

    checkpoint = open_checkpoint("weights.safetensors")        # or a Card; reads the header alone
    architecture = read_architecture(checkpoint, Architecture)  # an attrs class
    network = build(architecture)
    load_into(network, checkpoint)

Whatever is wrong with a file is an `AssetError` of one line.
"""

from __future__ import annotations

from ppap_framework.checkpoints._architecture import read_architecture
from ppap_framework.checkpoints._checkpoint import (
    Checkpoint,
    join_checkpoints,
    open_as,
    open_checkpoint,
    save_checkpoint,
)
from ppap_framework.checkpoints._choice import find_checkpoint
from ppap_framework.checkpoints._digest import file_sha256
from ppap_framework.checkpoints._fetch import (
    cache_dir,
    check,
    fetch,
    location,
    noted_sha256,
    package_file,
)
from ppap_framework.checkpoints._load import load_into, misfits
from ppap_framework.checkpoints._offline import (
    asking_hub,
    asking_torch_hub,
    downloads_are_off,
    in_torch_hub,
    without_downloads,
)
from ppap_framework.checkpoints._safetensors import write_safetensors

__all__ = [
    "Checkpoint",
    "asking_hub",
    "asking_torch_hub",
    "cache_dir",
    "check",
    "downloads_are_off",
    "fetch",
    "file_sha256",
    "find_checkpoint",
    "in_torch_hub",
    "join_checkpoints",
    "load_into",
    "location",
    "misfits",
    "noted_sha256",
    "open_as",
    "open_checkpoint",
    "package_file",
    "read_architecture",
    "save_checkpoint",
    "without_downloads",
    "write_safetensors",
]
