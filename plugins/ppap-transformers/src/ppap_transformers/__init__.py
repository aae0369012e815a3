"""Networks of the transformers library, from a folder, a checkpoint or the hub.

    model = find_model(options.model, checkpoint)       # a checkpoint with configs and weights
    network = load_network(model, "depth-estimation")   # transformers' own class, weights checked
    feed = make_input(model)                            # its image processor, differentiable
    tokens = load_tokenizer(options.model, checkpoint)  # transformers' own, of a model that reads

`feed(images)` returns the `pixel_values` of the network. If `feed.kept` is not 1, the processor
crops or adds a border: `central(maps, feed.kept)` is what the network sees of a map, and
`central(output, 1 / feed.kept)` what it says of the image.

An ordinary folder has `config.json`, weights (`model.safetensors`, its shards, or
`pytorch_model.bin`) and usually `preprocessor_config.json`. A checkpoint of this project states the
two configurations as its architecture, {"config": {...}, "preprocessor": {...}}, or lies in such a
folder. Code that comes with a model is never executed. Only hub names need internet access.

transformers is imported only on loading.
"""

from __future__ import annotations

from ppap_transformers._files import find_model
from ppap_transformers._input import central, make_input
from ppap_transformers._network import Task, load_network
from ppap_transformers._tokens import load_tokenizer

__all__ = ["Task", "central", "find_model", "load_network", "load_tokenizer", "make_input"]
