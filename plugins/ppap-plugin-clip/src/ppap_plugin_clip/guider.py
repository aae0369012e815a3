"""Any two-tower network of transformers, such as CLIP or SigLIP, as a guide.

One tower embeds images, the other texts, in one space (Radford et al. 2021, arXiv 2103.00020; Zhai
et al. 2023, arXiv 2303.15343). Experts adapt the image tower; the text tower reads the target once.
"""

from __future__ import annotations

import copy
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    GuidanceModel,
    ImageInput,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
    weighted_parts,
)
from ppap_plugin_clip.options import ClipTextOptions
from ppap_transformers import find_model, load_network, load_tokenizer, make_input

__all__ = ["ClipTextGuide", "make_clip_text"]

# Those that embed pictures from which nothing but a mean and a deviation is removed.
_KNOWN = ("altclip", "blip", "chinese_clip", "clip", "clipseg", "metaclip_2", "siglip")
_SHOWN, _WORDS = 512, 80  # limits of pictures and labels in grids


def make_clip_text(options: ClipTextOptions, checkpoint: Checkpoint | None) -> ClipTextGuide:
    """Factory of the guider `clip-text`.

    Raises:
        UsageError: If no model is named.
        AssetError: If the files are missing, damaged, do not fit, or are unavailable, or the model
            does not have two towers.
    """
    files = find_model(options.model, checkpoint)
    kind = str(files.architecture["config"].get("model_type"))
    if kind not in _KNOWN:
        one_tower = kind.endswith("_vision_model") or "vision_config" not in str(files.architecture)
        fault = "has no text tower" if one_tower else "reads pictures in another form"
        raise AssetError(
            f"{files.name!r} is a {kind}, which {fault}",
            hint=f"give a whole model of type {', '.join(_KNOWN)}",
        )
    if not any("text" in name for name in files.state_dict()):
        raise AssetError(
            f"{files.name!r} has no text tower: it has only the weights that look at images",
            hint="give the weights of the whole model",
        )
    model: Any = load_network(files, "zero-shot-image-classification")
    tokenizer = load_tokenizer(options.model, checkpoint)
    return ClipTextGuide(model, TextInput(tokenizer, model.config, files.name), make_input(files))


@final
class TextInput:
    """The inputs of a text tower.

    Args:
        tokenizer: A tokenizer of transformers.
        config: The config of the model.
        name: Name of the model in messages.
    """

    def __init__(self, tokenizer: Any, config: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        text = config.text_config
        self._words = text.vocab_size
        self._limit = min(tokenizer.model_max_length, text.max_position_embeddings)
        # SigLIP was trained with texts that are padded to the full length, without a mask.
        self._padding = "max_length" if "siglip" in config.model_type else False

    def __call__(self, text: str) -> dict[str, Tensor]:
        """Token ids and, if the tokenizer makes one, their mask, (1, L).

        Raises:
            UsageError: If the text is too long.
            AssetError: If the tokenizer does not fit the network.
        """
        found = self._tokenizer(text, truncation=False, verbose=False)
        if (length := len(found["input_ids"])) > self._limit:
            raise UsageError(
                f"the text {_short(text)!r} has {length} tokens, and {self._name!r} reads at most"
                f" {self._limit}",
                hint='shorten it, or make several of it: "a red cube | on a table"',
            )
        if max(found["input_ids"], default=0) >= self._words:
            raise AssetError(
                f"the tokenizer of {self._name!r} knows more words than its text tower",
                hint="they are of different models",
            )
        if self._padding:
            pad = {"padding": self._padding, "max_length": self._limit}
            found = self._tokenizer(text, truncation=False, verbose=False, **pad)
        keys = ("input_ids", "attention_mask")
        return {key: torch.tensor([found[key]]) for key in keys if key in found}


def _short(text: str) -> str:
    return text if len(text) <= _WORDS else f"{text[: _WORDS - 3]}..."


@final
class ClipTextGuide(GuidanceModel):
    """A frozen two-tower network with its preprocessing and tokenizer.

    Args:
        model: A model of transformers with `get_image_features` and `get_text_features`.
        tokens: Makes the inputs of the text tower.
        feed: Preprocessing of images.
    """

    def __init__(self, model: nn.Module, tokens: TextInput, feed: ImageInput) -> None:
        super().__init__()
        self.network: Any = _without(model, "text")
        self._text_tower: Any = _without(model, "vision", "visual")
        self._tokens = tokens
        self.feed = feed
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Unit embeddings (B, D) of images (B, 3, H, W); the noise level is ignored."""
        found = self.network.get_image_features(pixel_values=self.feed(images))
        return F.normalize(found.pooler_output, dim=-1)

    @torch.no_grad()
    def target(self, given: TargetInput) -> Target:
        """Embeddings of texts and pictures, each a unit vector times its weight: (1, K, D).

        The absolute weights have the sum 1, so that a guidance scale means the same for any number
        of texts.

        Args:
            given: A text or a picture; several of them with weights, such as
                "a red cube | mood.png:0.5 | blurry:-1"; or an embedding, (D,), or B of them (B, D).
                Pictures that are not square are center-cropped.

        Raises:
            UsageError: For an empty or too long text, a weight of 0, or another array.
            AssetError: If a picture cannot be read.
        """
        if given.array is not None:
            return self._of_array(given.array, given.source)
        parts = weighted_parts(given)
        if not all(weight for _, weight in parts):
            raise UsageError(
                f"a part of the target {_short(given.text or '')!r} has the weight 0",
                hint="leave that part out",
            )
        total = sum(abs(weight) for _, weight in parts)
        embeddings, labels, pictures = [], [], []
        for part, weight in parts:
            if part.image is not None:
                picture = _square(part.pixels())
                pictures.append(picture)
                embeddings.append(self(picture[None].to(self._device()))[0])
                label = part.source.rpartition("/")[2]
            elif part.text is not None:
                embeddings.append(self._of_text(part.text))
                label = part.text
            else:
                raise UsageError(
                    f"{part.source!r} is neither a text nor a picture",
                    hint="an embedding is given alone, without | and weight",
                )
            labels.append(label if weight == 1.0 else f"{label}:{weight:g}")
        value = torch.stack(
            [e.cpu() * (weight / total) for e, (_, weight) in zip(embeddings, parts, strict=True)]
        )
        shown = [_of_height(picture, pictures[0].shape[1]) for picture in pictures]
        return Target(
            value=value[None],
            label=_short(" | ".join(labels)),
            picture=torch.cat(shown, 2) if shown else None,
        )

    def describe(self, prediction: Tensor) -> list[str]:
        """Always empty, since an embedding has no readable form."""
        return []

    def _device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    def _of_text(self, text: str) -> Tensor:
        inputs = {key: value.to(self._device()) for key, value in self._tokens(text).items()}
        return F.normalize(self._text_tower.get_text_features(**inputs).pooler_output[0], dim=-1)

    def _of_array(self, array: Tensor, source: str) -> Target:
        black = torch.zeros(1, 3, 32, 32, device=self._device())
        size = self(black).shape[1]
        rows = array.float().reshape(-1, array.shape[-1])
        if array.ndim > 2 or rows.shape[1] != size or not bool(rows.any(1).all()):
            raise UsageError(
                f"{source!r} is no embedding: it has the shape {tuple(array.shape)}",
                hint=f"give a text, a picture, or {size} numbers that are not all 0",
            )
        return Target(value=F.normalize(rows, dim=-1)[:, None], label="an embedding")


def _without(model: nn.Module, *prefixes: str) -> nn.Module:
    """The same model without some of its parts; the others are shared.

    Parameters beside the towers, such as the scale of logits, are left out, too.
    """
    twin = copy.copy(model)
    twin._modules = {
        name: part for name, part in model._modules.items() if not name.startswith(prefixes)
    }
    twin._parameters = {}
    return twin


def _square(picture: Tensor) -> Tensor:
    """The middle of a picture (3, H, W), at most `_SHOWN` pixels wide."""
    side = min(picture.shape[1:])
    top, left = ((extent - side) // 2 for extent in picture.shape[1:])
    picture = picture[:, top : top + side, left : left + side]
    return _of_height(picture, _SHOWN) if side > _SHOWN else picture


def _of_height(picture: Tensor, side: int) -> Tensor:
    if picture.shape[1] == side:
        return picture
    return F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)[0]
