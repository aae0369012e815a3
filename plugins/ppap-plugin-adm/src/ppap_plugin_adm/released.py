"""Cards of the checkpoints that the README of openai/guided-diffusion lists.

The configurations are those of its command lines. It publishes no hashes; the one SHA-256 here is
the one that other programs check for that checkpoint. The sizes are those that the server reports.
This module does not import torch.
"""

from __future__ import annotations

from typing import Any

import attrs

from ppap_framework.plugin import Card

__all__ = ["cards"]

_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/{}.pt"
_MULTS = {
    64: [1, 2, 3, 4],
    128: [1, 1, 2, 3, 4],
    256: [1, 1, 2, 2, 4, 4],
    512: [0.5, 1, 1, 2, 2, 4, 4],
}
_RESOLUTIONS = (32, 16, 8)  # sides of the feature maps with attention, in pixels
_CLASSES = {"num_classes": 1000}
_FOUR_HEADS = {"num_head_channels": -1}
_UPSAMPLER = {"model_channels": 192, "channel_mult": _MULTS[256], **_CLASSES}
_SHA256 = {
    "256x256_diffusion_uncond": "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1"
}
_SIZES = {"256x256_diffusion": 2215479544, "256x256_diffusion_uncond": 2211383297}
_IMAGENET = "ImageNet, {0} x {0}"

# name: file, side, parameters, summary, differences from the default configuration
_DENOISERS: dict[str, tuple[str, int, int, str, dict[str, Any]]] = {
    "adm-64": (
        *("64x64_diffusion", 64, 295904454, f"{_IMAGENET.format(64)}, class-conditional"),
        {"model_channels": 192, "num_res_blocks": 3, "dropout": 0.1, **_CLASSES}
        | {"use_new_attention_order": True},
    ),
    "adm-128": (
        *("128x128_diffusion", 128, 421529606, f"{_IMAGENET.format(128)}, class-conditional"),
        {**_FOUR_HEADS, **_CLASSES},
    ),
    "adm-256": (
        *("256x256_diffusion", 256, 553838086, f"{_IMAGENET.format(256)}, class-conditional"),
        _CLASSES,
    ),
    "adm-256-uncond": (
        *("256x256_diffusion_uncond", 256, 552814086, f"{_IMAGENET.format(256)}, unconditional"),
        {},
    ),
    "adm-512": (
        *("512x512_diffusion", 512, 558997638, f"{_IMAGENET.format(512)}, class-conditional"),
        {**_CLASSES, "use_fp16": False},
    ),
    "adm-lsun-bedroom": ("lsun_bedroom", 256, 552814086, "LSUN bedrooms", {"dropout": 0.1}),
    "adm-lsun-cat": ("lsun_cat", 256, 552814086, "LSUN cats", {"dropout": 0.1}),
    "adm-lsun-horse": ("lsun_horse", 256, 552814086, "LSUN horses", {"dropout": 0.1}),
    "adm-lsun-horse-nodropout": (
        *("lsun_horse_nodropout", 256, 552814086, "LSUN horses, trained without dropout"),
        {},
    ),
    "adm-64-to-256": (
        *("64_256_upsampler", 256, 311795910, "Upsampler from 64 to 256"),
        {**_UPSAMPLER, **_FOUR_HEADS},
    ),
    "adm-128-to-512": (
        *("128_512_upsampler", 512, 308835270, "Upsampler from 128 to 512"),
        {**_UPSAMPLER, "attention_resolutions": [16, 32]},
    ),
}
# name: file, side, parameters, blocks at each resolution
_CLASSIFIERS = {
    "adm-64-classifier": ("64x64_classifier", 64, 65438568, 4),
    "adm-128-classifier": ("128x128_classifier", 128, 42568040, 2),
    "adm-256-classifier": ("256x256_classifier", 256, 54096360, 2),
    "adm-512-classifier": ("512x512_classifier", 512, 54448360, 2),
}


def cards() -> list[Card]:
    """One card for each file, denoisers first."""
    return [*map(_denoiser, _DENOISERS), *map(_classifier, _CLASSIFIERS)]


def _denoiser(name: str) -> Card:
    file, side, parameters, summary, differing = _DENOISERS[name]
    config = {
        **_both(side),
        "model_channels": 256,
        "out_channels": 6,
        "num_res_blocks": 2,
        "num_heads": 4,
        "use_fp16": True,
        **differing,
    }
    if "upsampler" not in file:
        network = "UNetModel"
        return _card(name, "adm", "backend", file, side, parameters, summary, network, config)
    joined = "adm-{}+{}".format(file.partition("_")[0], name)
    card = _card(
        *(name, "adm", "backend", file, side, parameters, f"{summary}: {joined}"),
        *("SuperResModel", config),
    )
    architecture = {"upsampler": card.architecture}
    return attrs.evolve(card, prefix="upsampler.", joined=joined, architecture=architecture)


def _classifier(name: str) -> Card:
    file, side, parameters, blocks = _CLASSIFIERS[name]
    config = {
        **_both(side),
        "model_channels": 128,
        "out_channels": 1000,
        "num_res_blocks": blocks,
        "use_fp16": False,
        "pool": "attention",
    }
    summary = f"{_IMAGENET.format(side)}, noise-aware"
    component, network = "adm-classifier", "EncoderUNetModel"
    return _card(name, component, "guider", file, side, parameters, summary, network, config)


def _both(side: int) -> dict[str, Any]:
    return {
        "image_size": side,
        "in_channels": 3,
        "attention_resolutions": [side // resolution for resolution in _RESOLUTIONS],
        "channel_mult": _MULTS[side],
        "num_head_channels": 64,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
    }


def _card(
    name: str,
    component: str,
    kind: Any,
    file: str,
    side: int,
    parameters: int,
    summary: str,
    network: str,
    config: dict[str, Any],
) -> Card:
    return Card(
        name=name,
        component=component,
        kind=kind,
        summary=summary,
        uri=_URL.format(file),
        sha256=_SHA256.get(file),
        size=_SIZES.get(file),
        parameters=parameters,
        licence="MIT",
        image_size=side,
        architecture={
            "official_class": f"guided_diffusion.unet.{network}",
            "config": config,
            "process": {"schedule": "cosine" if side == 64 else "linear", "timesteps": 1000},
        },
    )
