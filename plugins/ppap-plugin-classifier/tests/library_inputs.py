"""What guides feed their networks, beside what the networks' own libraries feed them.

Every architecture of transformers is made tiny, saved as a folder and loaded as a guide. A hook on
the network shows what the guide feeds it. What transformers feeds it comes from the same folder,
by `AutoImageProcessor` with Pillow, and of timm from timm's own transforms of a Pillow image.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from tiny_networks import DEPTH, MASKS, SEGMENTATION, SIZE, Task
from torch import Tensor, nn

from ppap_framework.checkpoints import Checkpoint
from ppap_framework.components import GuidanceModel
from ppap_framework.errors import PpapError
from ppap_framework.learn import load_teacher
from ppap_framework.run import GuideRequest
from ppap_plugin_classifier import timm_models
from ppap_plugin_classifier.guider import ClassifierGuide
from ppap_transformers import make_input

TOLERANCE = 1.5
"""In levels of 255: Pillow rounds to 8 bits after each of its two passes, half a level each, and
the second pass weighs the first one's errors."""

LARGEST = 20_000_000
"""Parameters; a larger network is not saved, and its guide is made without weights."""

_NOT_TRIED = {
    "detr": "the guider reads no masks of single objects",
    "oneformer": "it wants words beside a picture",
    "shieldgemma2": "it wants words beside a picture",
}

FAMILIES: Mapping[Task, tuple[str, ...]] = {
    "classification": ("IMAGE_CLASSIFICATION",),
    "depth": ("DEPTH_ESTIMATION",),
    "segmentation": ("SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION"),
}

_FEW = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "d_model": 16,
    "d_latents": 16,
    "num_latents": 4,
    "fusion_hidden_size": 8,
    "decoder_hidden_size": 8,
    "embed_dim": 16,
    "image_size": SIZE,
}
_LISTS: dict[str, tuple[int, ...]] = {
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (16, 16, 32, 32),
    "embed_dims": (16, 16, 32, 32),
    "embed_dim": (16, 16, 32, 32),
    "num_heads": (1, 1, 2, 2),
    "num_attention_heads": (1, 1, 2, 2),
}
_TOWER = {**{name: _FEW[name] for name in (*_FEW,)[:4]}, "image_size": SIZE, "patch_size": 8}
_TOWERS = {"vision_config": _TOWER, "text_config": {**_TOWER, "vocab_size": 64}}
_NARROW = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2}
_OWN: Mapping[str, dict[str, Any]] = {
    "bit": {"embedding_size": 16, "num_groups": 4},
    "clip": _TOWERS,
    "data2vec-vision": {"patch_size": 4, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "hgnet_v2": {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 16, 16],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [8, 16, 16, 16],
        "stage_num_blocks": [1, 1, 1, 1],
    },
    "metaclip_2": _TOWERS,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": _NARROW,
    "mobilevitv2": {"width_multiplier": 0.25},
    "prompt_depth_anything": DEPTH["depth_anything"].to_diff_dict(),
    "sapiens2": {"head_config": {"upsample_out_channels": [8, 8], "conv_out_channels": [8]}},
    "siglip": _TOWERS,
    "siglip2": _TOWERS,
    "textnet": {"depths": None, "hidden_sizes": None},
    "timm_wrapper": {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 32, 32]}},
}
"""What makes one tiny beside the values above; None is transformers' default."""

_STATED = {"dinov2_with_registers": "BitImageProcessor", "hgnet_v2": "ViTImageProcessor"}
"""Processors of types for which transformers names none."""

GUIDERS: Mapping[Task, str] = {
    "classification": "classifier",
    "depth": "depth",
    "segmentation": "segmentation",
}


def architectures() -> Iterator[tuple[Task, str]]:
    """The types of network that the installed transformers has for each task."""
    for task, families in FAMILIES.items():
        for family in families:
            for config in getattr(transformers, f"MODEL_FOR_{family}_MAPPING"):
                yield task, config.model_type


def _config(task: Task, kind: str) -> Any:
    known = {**DEPTH, **SEGMENTATION, **MASKS} if task != "classification" else {}
    if kind in known:
        return known[kind]
    made = transformers.CONFIG_MAPPING[kind]
    values: dict[str, Any] = {}
    for name, value in made().to_dict().items():
        if isinstance(value, list | tuple) and name in _LISTS:
            values[name] = list(_LISTS[name][: len(value)])
        elif type(value) is int and name in _FEW:
            values[name] = _FEW[name]
    own = {name: value for name, value in _OWN.get(kind, {}).items() if name != "model_type"}
    values = {name: value for name, value in {**values, **own}.items() if value is not None}
    return made(**values)


def _preprocessor(config: Any) -> dict[str, Any]:
    """The processor's own values, at a size that fits a tiny network: 36 pixels before a crop."""
    if config.model_type in _STATED:
        stated = _STATED[config.model_type]
        own = getattr(transformers, stated)()
    else:
        if type(config) not in transformers.IMAGE_PROCESSOR_MAPPING:
            return {}
        kinds = transformers.IMAGE_PROCESSOR_MAPPING[type(config)]
        kind = kinds.get("torchvision") or kinds["pil"]
        if "pretrained_cfg" in inspect.signature(kind).parameters:
            return {}
        own, stated = kind(), kind.__name__
    values: dict[str, Any] = {"image_processor_type": stated}
    crops = bool(getattr(own, "do_center_crop", None))
    if stated.startswith("ImageGPT"):
        values["clusters"] = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    small = (SIZE, SIZE + 4) if stated.startswith("Perceiver") else (SIZE + 4 * crops, SIZE)
    for name, side in zip(("size", "crop_size"), small, strict=True):
        if stated := getattr(own, name, None):
            values[name] = {key: side for key, value in dict(stated).items() if value}
    return values


def _network(task: Task, config: Any) -> nn.Module:
    mappings = [getattr(transformers, f"MODEL_FOR_{family}_MAPPING") for family in FAMILIES[task]]
    classes = next(mapping[type(config)] for mapping in mappings if type(config) in mapping)
    torch.manual_seed(0)
    network: nn.Module = (classes[0] if isinstance(classes, tuple) else classes)(config)
    return network


def picture(height: int, width: int) -> Image.Image:
    """Waves and noise, away from black and white, where Pillow clips what kernels overshoot."""
    noise = np.random.default_rng(0).uniform(-25, 25, (height, width, 3))
    y, x = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)
    waves = np.stack([np.sin(y * (k + 1) + x * (3 - k)) for k in range(3)], -1)
    return Image.fromarray(np.uint8(np.round(127 + 50 * waves + noise)))


def fed(guide: GuidanceModel, image: Image.Image) -> Tensor:
    """What the guide feeds its network; the network itself is not computed."""
    caught: list[Tensor] = []

    class Fed(Exception):  # noqa: N818  # ends the call
        pass

    def catch(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(given[0] if given else named["pixel_values"])
        raise Fed

    hook = guide.network.register_forward_pre_hook(catch, with_kwargs=True)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    try:
        guide(pixels)
    except (Fed, PpapError):  # which the framework takes for the guide's own
        assert caught
    finally:
        hook.remove()
    return caught[0]


def levels(guide: GuidanceModel, image: Image.Image, expected: Tensor) -> float:
    """The largest deviation of what a network is fed, in levels of 255; infinite for a shape."""
    ours = fed(guide, image)
    if ours.shape != expected.shape:
        return float("inf")
    shown: Any = getattr(guide, "shown", None) or guide.feed  # type: ignore[union-attr]  # one or the other
    unit = 2 * shown._scale / 255  # of the network's input
    return float(((ours - expected).abs() / unit).max())


def of_transformers(task: Task, kind: str, folder: Path, image: Image.Image) -> float | str:
    """The deviation; or in words why the architecture cannot guide or could not be made."""
    if kind in _NOT_TRIED:
        return _NOT_TRIED[kind]
    config = _config(task, kind)
    preprocessor = _preprocessor(config)
    try:
        with torch.device("meta"):
            network: Any = _network(task, config)
    except ImportError as error:
        return f"not made: {' '.join(str(error).split())[:80]}"
    tiny = sum(parameter.numel() for parameter in network.parameters()) < LARGEST
    if tiny:
        network = _network(task, config)
        network.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    options = {"predicts": "disparity"} if task == "depth" else {}
    try:
        if tiny:
            request = GuideRequest(source=GUIDERS[task], model=str(folder), options=options)
            guide = load_teacher(request).model
        else:
            stated = {"config": config.to_dict(), "preprocessor": preprocessor}
            shown = make_input(Checkpoint(kind, {}, stated))
            guide = ClassifierGuide(network, "ab", shown)
    except PpapError as error:
        return error.message.replace(repr(folder.name), "it")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = processor(image, return_tensors="pt")["pixel_values"]
    return levels(guide, image, expected)


def timm_models_of_all_modules() -> list[str]:
    """Of every module of timm the first model that classifies square pictures in colours."""
    chosen: dict[str, str] = {}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        square = config is not None and config.input_size[1] == config.input_size[2]
        if square and config.num_classes:
            chosen.setdefault(timm.models.model_entrypoint(name).__module__, name)
    return list(chosen.values())


def of_timm(name: str, image: Image.Image, **arguments: Any) -> float:
    """The deviation of a model of ordinary size, whose weights are never made."""
    with torch.device("meta"):
        network = timm.create_model(name, **arguments)
    guide = ClassifierGuide(network, "ab", timm_models._input(network, {}, None))
    config = timm.data.resolve_model_data_config(network)
    return levels(guide, image, timm.data.create_transform(**config)(image)[None])
