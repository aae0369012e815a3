"""Configurations and cards of the checkpoints that openai/glide-text2im publishes.

Each published file is the state dict of one network; no hashes are published. The size of the
upsampler is the one that the server reports. This module does not import torch.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from ppap_framework.plugin import Card
from ppap_plugin_glide.config import BASE, CLIP, INPAINT_BASE, INPAINT_UPSAMPLER, UPSAMPLER

__all__ = ["CLIP_CONFIG", "STAGES", "cards"]

_URL = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021/{}.pt"
_SIZES = {"upsample": 1593693639}
_STAGES, _ENCODERS = "glide-base+glide-upsample", "clip-image-enc+clip-text-enc"
_FILLING = "glide-base-inpaint+glide-upsample-inpaint"

_BOTH: dict[str, Any] = {
    "text_ctx": 128,
    "xf_width": 512,
    "xf_layers": 16,
    "xf_heads": 8,
    "xf_final_ln": True,
    "xf_padding": True,
    "tokenizer": {"n_vocab": 50257},
    "in_channels": 3,
    "model_channels": 192,
    "out_channels": 6,
    "dropout": 0.1,
    "num_heads": 1,
    "num_head_channels": 64,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
STAGES: dict[str, dict[str, Any]] = {
    "base": {
        "official_class": BASE,
        "config": {
            **_BOTH,
            "num_res_blocks": 3,
            "attention_resolutions": [2, 4, 8],
            "channel_mult": [1, 2, 3, 4],
        },
        "image_size": 64,
        "process": {"schedule": "cosine", "timesteps": 1000},
    },
    "upsampler": {
        "official_class": UPSAMPLER,
        "config": {
            **_BOTH,
            "num_res_blocks": 2,
            "attention_resolutions": [8, 16, 32],
            "channel_mult": [1, 1, 2, 2, 4, 4],
        },
        "image_size": 256,
        "process": {"schedule": "linear", "timesteps": 1000},
    },
}
CLIP_CONFIG: dict[str, Any] = {
    "logit_scale": 100.0,
    "beta_schedule": "squaredcos_cap_v2",
    "n_timesteps": 1000,
    "image_size": 64,
    "patch_size": 4,
    "n_vocab": 65536,
    "max_text_len": 77,
    "n_embd": 512,
    "n_head_state_text": 64,
    "n_head_text": 8,
    "n_xf_blocks_text": 12,
    "n_head_state_image": 64,
    "n_head_image": 12,
    "n_xf_blocks_image": 12,
}


def cards() -> list[Card]:
    """One card for each file; "+" joins base and upsampler, and the two encoders of the CLIP."""
    base, upsampler = (
        {**STAGES["base"], "official_class": INPAINT_BASE},
        {**STAGES["upsampler"], "official_class": INPAINT_UPSAMPLER},
    )
    upsample = _stage(
        *("glide-upsample", "upsample", 398361286, f"From 64 to 256: {_STAGES}"),
        *("upsampler", STAGES["upsampler"]),
    )
    fill_in = _stage(
        *("glide-base-inpaint", "base_inpaint", 385037638, "Fills in at 64 x 64", "base", base)
    )
    fill_in_large = _stage(
        *("glide-upsample-inpaint", "upsample_inpaint", 398368198),
        *(f"Fills in from 64 to 256: {_FILLING}", "upsampler", upsampler),
    )
    return [
        _stage("glide-base", "base", 385030726, "Draws 64 x 64", "base", STAGES["base"]),
        attrs.evolve(upsample, joined=_STAGES),
        fill_in,
        attrs.evolve(fill_in_large, joined=_FILLING),
        _encoder("clip-image-enc", "clip_image_enc", 86443776, "image_encoder"),
        _encoder("clip-text-enc", "clip_text_enc", 71679488, "text_encoder"),
    ]


def _stage(
    name: str, file: str, parameters: int, summary: str, stage: str, stated: dict[str, Any]
) -> Card:
    architecture = {stage: stated, "tokenizer": "gpt2"}
    return _card(
        *(name, "glide", "backend", file, parameters, summary, f"{stage}."),
        *(stated["image_size"], architecture),
    )


def _encoder(name: str, file: str, parameters: int, prefix: str) -> Card:
    architecture = {"official_class": CLIP, "config": CLIP_CONFIG, "tokenizer": "clip"}
    card = _card(
        *(name, "clip", "guider", file, parameters, f"Half of the noised CLIP: {_ENCODERS}"),
        *(f"{prefix}.", CLIP_CONFIG["image_size"], architecture),
    )
    return attrs.evolve(card, joined=_ENCODERS)


def _card(
    name: str,
    component: str,
    kind: Literal["backend", "guider"],
    file: str,
    parameters: int,
    summary: str,
    prefix: str,
    side: int,
    architecture: dict[str, Any],
) -> Card:
    return Card(
        name=name,
        component=component,
        kind=kind,
        summary=summary,
        uri=_URL.format(file),
        sha256=None,
        size=_SIZES.get(file),
        parameters=parameters,
        prefix=prefix,
        licence="MIT",
        image_size=side,
        architecture=architecture,
    )
