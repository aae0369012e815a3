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

from ppap_framework.checkpoints._checkpoint import Checkpoint as Checkpoint
from ppap_framework.checkpoints._checkpoint import find_checkpoint as find_checkpoint
from ppap_framework.checkpoints._checkpoint import join_checkpoints as join_checkpoints
from ppap_framework.checkpoints._checkpoint import open_checkpoint as open_checkpoint
from ppap_framework.checkpoints._checkpoint import read_architecture as read_architecture
from ppap_framework.checkpoints._checkpoint import save_checkpoint as save_checkpoint
from ppap_framework.checkpoints._fetch import check as check
from ppap_framework.checkpoints._fetch import downloading as downloading
from ppap_framework.checkpoints._fetch import downloads_are_off as downloads_are_off
from ppap_framework.checkpoints._fetch import fetch as fetch
from ppap_framework.checkpoints._fetch import in_torch_hub as in_torch_hub
from ppap_framework.checkpoints._fetch import location as location
from ppap_framework.checkpoints._fetch import noted_sha256 as noted_sha256
from ppap_framework.checkpoints._fetch import package_file as package_file
from ppap_framework.checkpoints._fetch import without_downloads as without_downloads
from ppap_framework.checkpoints._tensor_file import counted as counted
from ppap_framework.checkpoints._tensor_file import load_into as load_into
from ppap_framework.checkpoints._tensor_file import misfits as misfits
from ppap_framework.checkpoints._tensor_file import write_safetensors as write_safetensors
