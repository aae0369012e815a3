"""What the embedded GLIDE's stages are: networks, processes, and the tokenizer they read with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ppap_plugin_glide.tokens import PromptTokens, read_tokenizer
from ppap_plugin_shapes.world.sampling import sample_scene

NAME = "shapes-glide"
DATA_SEED, DATA_COUNT = 1, 30_000
EMPTY = 0.1  # share of captions
VLB_WEIGHT = 1e-3
END = "<|endoftext|>"
WORDS = 400  # of the tokenizer, bytes included
CONTEXT = 24  # the longest caption has 22 tokens
SIZES = {"base": 32, "upsampler": 64}
CLASSES = {
    "base": "glide_text2im.text2im_model.Text2ImUNet",
    "upsampler": "glide_text2im.text2im_model.SuperResText2ImUNet",
}
CONFIG = {
    "in_channels": 3,
    "model_channels": 64,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "dropout": 0.0,
    "channel_mult": [1, 1, 2],
    "conv_resample": False,
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "text_ctx": CONTEXT,
    "xf_width": 128,
    "xf_layers": 4,
    "xf_heads": 4,
    "xf_final_ln": True,
    "xf_padding": True,
}
PROCESSES = {
    name: {"schedule": schedule, "timesteps": 1000, "predicts": "v", "variance": "learned_range"}
    for name, schedule in (("base", "cosine"), ("upsampler", "linear"))
}

# How the upsampler is sampled: as published but for its 27 steps, which are no better here; see the
# PSNR on the card.
RECIPE = {"respacing": "6", "eta": 0.0, "temperature": 0.997}
START = "shapes-adm"  # whose weights both begin with


def captions_file(state: Path) -> Path:
    """Where a state folder keeps the captions of its renders, and the tokenizer."""
    return state / f"captions-{DATA_SEED}-{DATA_COUNT}.json"


def captions(seed: int, count: int) -> list[str]:
    """Of the first scenes of a seed, without rendering them."""
    return [sample_scene(seed, index).caption for index in range(count)]


def tokenizer_of(texts: list[str]) -> dict[str, Any]:
    """A tokenizer.json that knows the words of texts, and all bytes; the last token ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text.lower() for text in texts), trainer)
    tokenizer.add_tokens([END])
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def tokens_of(tokenizer: dict[str, Any]) -> PromptTokens:
    """The tokenizer with the context of the networks."""
    read = read_tokenizer(tokenizer)
    return PromptTokens(read, read.get_vocab_size(), CONTEXT)


def config_of(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The arguments of both networks."""
    return {**CONFIG, "tokenizer": {"n_vocab": read_tokenizer(tokenizer).get_vocab_size()}}
