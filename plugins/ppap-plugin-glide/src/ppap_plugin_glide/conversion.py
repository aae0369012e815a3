"""Converts published state dicts to checkpoints with architecture and tokenizer.

`base.pt` and `upsample.pt` become a checkpoint of the backend, `clip_image_enc.pt` and
`clip_text_enc.pt` a checkpoint of the guider.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ppap_framework.author import open_checkpoint, save_checkpoint
from ppap_plugin_glide.config import CLIP
from ppap_plugin_glide.released import CLIP_CONFIG, STAGES
from ppap_plugin_glide.vocabularies import clip_tokenizer, gpt2_tokenizer

__all__ = ["convert_clip", "convert_glide"]


def convert_glide(base: Path, upsampler: Path, out: Path) -> None:
    """Write a checkpoint of the backend from the published `base.pt` and `upsample.pt`.

    Raises:
        AssetError: If a file cannot be read or written, or the vocabulary is not installed.
    """
    state = {**_prefixed("base", base), **_prefixed("upsampler", upsampler)}
    save_checkpoint(out, state, {**STAGES, "tokenizer": gpt2_tokenizer()})


def convert_clip(image_encoder: Path, text_encoder: Path, out: Path) -> None:
    """Write a checkpoint of the guider from `clip_image_enc.pt` and `clip_text_enc.pt`.

    Raises:
        AssetError: As for `convert_glide`.
    """
    state = {
        **_prefixed("image_encoder", image_encoder),
        **_prefixed("text_encoder", text_encoder),
    }
    architecture = {"official_class": CLIP, "config": CLIP_CONFIG, "tokenizer": clip_tokenizer()}
    save_checkpoint(out, state, architecture)


def _prefixed(name: str, path: Path) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in open_checkpoint(path).state_dict().items()}
