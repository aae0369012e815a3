"""Networks of the transformers library: found in a folder, a checkpoint or on the hub, and fed.

A guide whose networks come from transformers needs three things around them, and none of them
belongs to one task:

    files = find_model(options.model, checkpoint)       # config, preprocessing, verified weights
    network = load_network(files, "depth-estimation")   # transformers' own class, weights checked
    feed = make_input(files, multiple=patch_size)       # resize and normalisation, differentiable

`feed(images)` gives what the network takes as `pixel_values`.

An ordinary folder is `config.json`, weights (`model.safetensors`, its shards, or
`pytorch_model.bin`) and mostly `preprocessor_config.json`. A checkpoint of this project states the
first and the last as architecture, {"config": {...}, "preprocessor": {...}}, or lies in such a
folder. Code that comes with a model is never run, and the network is used for nothing but a name of
the hub.

Part of the author API, and imports transformers only when something is loaded.
"""

from __future__ import annotations

from ppap_framework.transformers_models._files import ModelFiles, find_model
from ppap_framework.transformers_models._input import ImageInput, make_input
from ppap_framework.transformers_models._network import Task, load_network

__all__ = ["ImageInput", "ModelFiles", "Task", "find_model", "load_network", "make_input"]
