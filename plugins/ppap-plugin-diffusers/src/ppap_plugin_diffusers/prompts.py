"""How prompts become arguments of a network: one function for each kind of pipeline, of a stage, B
prompts, and as many negative ones or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "Arguments",
    "aura_texts",
    "chroma_texts",
    "classes",
    "flux_texts",
    "listed_texts",
    "masked_texts",
    "prx_texts",
    "sd3_texts",
    "texts",
    "xl_texts",
]

Arguments: TypeAlias = Mapping[str, Any]
"""Keyword arguments of a network for its rows: B, or with classifier-free guidance 2B, those of
negative prompts first."""


def classes(stage: Any, prompts: Sequence[int], negatives: Sequence[int]) -> Arguments:
    """Of a network of classes."""
    return {"class_labels": torch.tensor([*negatives, *prompts])} if prompts else {}


def texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """Stable Diffusion 1 and 2, and DeepFloyd IF."""
    own, other = stage.pipe.encode_prompt(
        [*prompts],
        device=stage.encoder_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=bool(negatives),
        negative_prompt=_written(negatives),
    )
    return {"encoder_hidden_states": _rows(other, own, negatives)}


def _pooled(stage: Any, prompts: Sequence[str], negatives: Sequence[str], **others: None) -> Any:
    own, other, own_pooled, other_pooled = stage.pipe.encode_prompt(
        [*prompts],
        **others,
        device=stage.encoder_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=bool(negatives),
        negative_prompt=_written(negatives),
    )
    return _rows(other, own, negatives), _rows(other_pooled, own_pooled, negatives)


def xl_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """Stable Diffusion XL."""
    states, pooled = _pooled(stage, prompts, negatives)
    height, width = stage.image_shape[1:]  # original size, no crop, target size
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=states.dtype)
    sizes = sizes.to(states.device).expand(len(states), -1)
    return {
        "encoder_hidden_states": states,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes},
    }


def sd3_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """Stable Diffusion 3."""
    states, pooled = _pooled(stage, prompts, negatives, prompt_2=None, prompt_3=None)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _with_masks(
    stage: Any, prompts: Sequence[str], negatives: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Texts as the network reads them, and their masks."""
    own, own_mask, other, other_mask = stage.pipe.encode_prompt(
        [*prompts],
        device=stage.encoder_device,
        do_classifier_free_guidance=bool(negatives),
        negative_prompt=[*negatives],
    )
    return _rows(other, own, negatives), _rows(other_mask, own_mask, negatives)


def masked_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """PixArt."""
    states, mask = _with_masks(stage, prompts, negatives)
    extra: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if stage.network.denoiser.use_additional_conditions:
        height, width = stage.image_shape[1:]
        size = states.new_tensor([[height, width]]).expand(len(states), -1)
        ratio = states.new_tensor([[height / width]]).expand(len(states), -1)
        extra = {"resolution": size, "aspect_ratio": ratio}
    return {
        "encoder_hidden_states": states,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": extra,
    }


def flux_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """Flux."""
    states, pooled, text_ids = stage.pipe.encode_prompt(
        [*prompts], prompt_2=None, device=stage.encoder_device, num_images_per_prompt=1
    )
    scale = None
    if stage.network.denoiser.config.guidance_embeds:
        told = 3.5 if stage.options.cfg is None else stage.options.cfg
        scale = states.new_full((len(states),), told, dtype=torch.float32)
    return {
        "encoder_hidden_states": states,
        "pooled_projections": pooled,
        "txt_ids": text_ids,
        "guidance": scale,
    }


def prx_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """PRX."""
    states, mask = _with_masks(stage, prompts, negatives)
    return {"encoder_hidden_states": states, "attention_mask": mask}


def aura_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """AuraFlow."""
    return {"encoder_hidden_states": _with_masks(stage, prompts, negatives)[0]}


def chroma_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """Chroma."""
    own, places, own_mask, other, _, other_mask = stage.pipe.encode_prompt(
        [*prompts],
        device=stage.encoder_device,
        do_classifier_free_guidance=bool(negatives),
        negative_prompt=[*negatives],
    )
    mask = _rows(other_mask, own_mask, negatives)
    _, height, width = stage.shape
    return {
        "encoder_hidden_states": _rows(other, own, negatives),
        "txt_ids": places,
        "attention_mask": nn.functional.pad(mask, (0, height * width // 4), value=1),
    }


def listed_texts(stage: Any, prompts: Sequence[str], negatives: Sequence[str]) -> Arguments:
    """Z-Image: as its pipeline's `encode_prompt`, whose masks of tokens have values that are
    unknown where the cost of a step is estimated.
    """
    pipe, how = stage.pipe, {"add_generation_prompt": True, "enable_thinking": True}
    texts = [
        pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, **how
        )
        for text in (*negatives, *prompts)
    ]
    read = pipe.tokenizer(texts, padding="max_length", max_length=512, truncation=True)
    tokens, mask = read["input_ids"], read["attention_mask"]
    states = pipe.text_encoder(
        input_ids=torch.tensor(tokens, device=stage.encoder_device),
        attention_mask=torch.tensor(mask, device=stage.encoder_device).bool(),
        output_hidden_states=True,
    ).hidden_states[-2]
    starts = (row.index(1) for row in mask)
    each = zip(states, starts, map(sum, mask), strict=True)
    return {"cap_feats": [x[start : start + length] for x, start, length in each]}


def _written(negatives: Sequence[str]) -> list[str] | None:
    """None if all are empty, for which some pipelines have embeddings of their own."""
    return [*negatives] if any(negatives) else None


def _rows(negative: Tensor | None, own: Tensor, negatives: Sequence[Any]) -> Tensor:
    return torch.cat([negative, own]) if negatives and negative is not None else own
