"""Two-tower networks of transformers, tiny and random, with a tokenizer, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

SIZE = 32
WORDS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "red", "blue", "cube", "sphere", "photo", "of")
_TEXT: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VISION: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_BOTH: dict[str, Any] = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 8}

TOWERS: dict[str, Any] = {
    "clip": transformers.CLIPConfig(**_BOTH),
    "siglip": transformers.SiglipConfig(
        text_config={**_TEXT, "projection_size": 16}, vision_config=_VISION
    ),
    "metaclip_2": transformers.MetaClip2Config(**_BOTH),
    "chinese_clip": transformers.ChineseCLIPConfig(**_BOTH),
    "altclip": transformers.AltCLIPConfig(
        **{**_BOTH, "text_config": {**_TEXT, "project_dim": 16, "max_position_embeddings": 14}}
    ),
    "clipseg": transformers.CLIPSegConfig(**_BOTH),
    "blip": transformers.BlipConfig(  # whose default of 1e-10 makes all images equal
        **{**_BOTH, "vision_config": {**_VISION, "initializer_range": 0.02}},
        image_text_hidden_size=8,
    ),
}


def tokenizer(kind: str) -> Any:
    """One word, one token; a beginning and an end are added. SigLIP's makes no mask."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=12,
        model_input_names=["input_ids"] + ["attention_mask"] * (kind != "siglip"),
    )


def preprocessor(kind: str) -> dict[str, Any]:
    name = transformers.IMAGE_PROCESSOR_MAPPING[type(TOWERS[kind])]["pil"].__name__
    sides = {"height": SIZE, "width": SIZE}
    return {
        "image_processor_type": name.removesuffix("Pil"),
        "size": {"shortest_edge": SIZE} if name == "CLIPImageProcessorPil" else sides,
        "crop_size": sides,
    }


def saved(kind: str, folder: Path) -> nn.Module:
    """Write a folder as transformers saves it: network, preprocessor and tokenizer."""
    torch.manual_seed(0)
    network: Any = transformers.AutoModel.from_config(TOWERS[kind]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that embeddings differ
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(kind)))
    tokenizer(kind).save_pretrained(folder)
    return network  # type: ignore[no-any-return]  # transformers says nothing of it
