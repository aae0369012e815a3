"""Small checkpoints of both components, with a tokenizer that knows each letter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from ppap_framework.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from ppap_plugin_glide import build
from ppap_plugin_glide.tokens import END, START

BASE = "glide_text2im.text2im_model.Text2ImUNet"
UPSAMPLER = "glide_text2im.text2im_model.SuperResText2ImUNet"
INPAINT_BASE = "glide_text2im.text2im_model.InpaintText2ImUNet"
INPAINT_UPSAMPLER = "glide_text2im.text2im_model.SuperResInpaintText2ImUnet"
CLIP = "glide_text2im.clip.model_creation.CLIPModel"
LETTERS = pre_tokenizers.ByteLevel.alphabet()  # one for each byte
VOCABULARY = len(LETTERS) + 1  # and the end of a text, which pads
CONFIG: dict[str, Any] = {
    "text_ctx": 12,
    "xf_width": 16,
    "xf_layers": 1,
    "xf_heads": 2,
    "xf_final_ln": True,
    "xf_padding": True,
    "tokenizer": {"n_vocab": VOCABULARY},
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "channel_mult": [1],
}
PROCESS: dict[str, Any] = {"schedule": "cosine", "timesteps": 100}
CLIP_CONFIG: dict[str, Any] = {
    "logit_scale": 100.0,
    "beta_schedule": "squaredcos_cap_v2",
    "n_timesteps": 100,
    "image_size": 8,
    "patch_size": 4,
    "n_vocab": VOCABULARY + 3,
    "max_text_len": 10,
    "n_embd": 12,
    "n_head_state_text": 8,
    "n_head_text": 2,
    "n_xf_blocks_text": 1,
    "n_head_state_image": 8,
    "n_head_image": 3,
    "n_xf_blocks_image": 1,
}


def letters(*more: str) -> dict[str, Any]:
    """A tokenizer.json of bytes, and more tokens behind them."""
    words = [*sorted(LETTERS), *more]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def stage(official_class: str, size: int, **changes: Any) -> dict[str, Any]:
    config = {**CONFIG, **changes.pop("config", {})}
    stated = {"official_class": official_class, "config": config, "image_size": size}
    return {**stated, "process": PROCESS, **changes}


def stated(**changes: Any) -> dict[str, Any]:
    """The architecture of a backend of two stages; a change to None leaves a part out."""
    parts = {
        "base": stage(BASE, 4),
        "upsampler": stage(UPSAMPLER, 8, recipe={"respacing": "5"}),
        "tokenizer": letters(END),
        **changes,
    }
    return {name: part for name, part in parts.items() if part is not None}


def random_state(
    official_class: str, config: Mapping[str, Any], seed: int = 0
) -> dict[str, Tensor]:
    """Weights without zeroed layers."""
    generator = torch.Generator().manual_seed(seed)
    network = build(official_class, config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return dict(network.state_dict())


def glide(folder: Path, **changes: Any) -> Checkpoint:
    """A backend; weights fit what `stated` says without changes."""
    honest = stated(upsampler=None) if changes.get("upsampler", ()) is None else stated()
    state = {}
    for seed, name in enumerate(name for name in ("base", "upsampler") if name in honest):
        part = honest[name]
        weights = random_state(part["official_class"], part["config"], seed)
        state |= {f"{name}.{key}": value for key, value in weights.items()}
    save_checkpoint(folder / "glide.safetensors", state, stated(**changes))
    return open_checkpoint(folder / "glide.safetensors")


def inpainting(folder: Path, **changes: Any) -> Checkpoint:
    """A backend of two inpainting networks."""
    parts = stated(
        base=stage(INPAINT_BASE, 4),
        upsampler=stage(INPAINT_UPSAMPLER, 8, recipe={"respacing": "5", "eta": 1.0}),
    )
    state = {}
    for seed, name in enumerate(("base", "upsampler")):
        weights = random_state(parts[name]["official_class"], parts[name]["config"], seed)
        state |= {f"{name}.{key}": value for key, value in weights.items()}
    save_checkpoint(folder / "inpaint.safetensors", state, parts | changes)
    return open_checkpoint(folder / "inpaint.safetensors")


def clip(folder: Path, **changes: Any) -> Checkpoint:
    """A guider."""
    architecture = {
        "official_class": CLIP,
        "config": CLIP_CONFIG,
        "tokenizer": letters(START, END),
        **changes,
    }
    save_checkpoint(folder / "clip.safetensors", random_state(CLIP, CLIP_CONFIG), architecture)
    return open_checkpoint(folder / "clip.safetensors")
