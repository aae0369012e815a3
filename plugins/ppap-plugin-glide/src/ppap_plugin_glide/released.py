"""What the released checkpoints are, so that they become files that this plugin reads.

The published files hold bare state dicts: `base.pt` and `upsample.pt`, `clip_image_enc.pt` and
`clip_text_enc.pt`. Their configurations stand here; each pair becomes one file with its tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_plugin_glide.architecture import BASE, CLIP, UPSAMPLER
from ppap_plugin_glide.vocabularies import clip_tokenizer, gpt2_tokenizer

__all__ = ["CLIP_CONFIG", "STAGES", "convert_clip", "convert_glide"]

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


def convert_glide(base: Path, upsampler: Path, out: Path) -> None:
    """Write a checkpoint of the backend from the published `base.pt` and `upsample.pt`.

    Raises:
        AssetError: Where a file cannot be read or written, or the vocabulary is not installed.
    """
    state = {**_prefixed("base", base), **_prefixed("upsampler", upsampler)}
    save_checkpoint(out, state, {**STAGES, "tokenizer": gpt2_tokenizer()})


def convert_clip(image_encoder: Path, text_encoder: Path, out: Path) -> None:
    """Write a checkpoint of the guider from `clip_image_enc.pt` and `clip_text_enc.pt`.

    Raises:
        AssetError: As `convert_glide`.
    """
    state = {
        **_prefixed("image_encoder", image_encoder),
        **_prefixed("text_encoder", text_encoder),
    }
    architecture = {"official_class": CLIP, "config": CLIP_CONFIG, "tokenizer": clip_tokenizer()}
    save_checkpoint(out, state, architecture)


def _prefixed(name: str, path: Path) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in open_checkpoint(path).state_dict().items()}
