"""GLIDE's noised CLIP as a guide (Nichol et al. 2021, arXiv 2112.10741, section 4.4)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    GuidanceModel,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
    noise_schedule,
    read_architecture,
)
from ppap_plugin_adm.guider import at_size
from ppap_plugin_glide.architecture import ClipArchitecture, load_networks
from ppap_plugin_glide.config import NoisedClipConfig
from ppap_plugin_glide.noised_clip import ImageEncoder, TextEncoder, unit
from ppap_plugin_glide.tokens import ClipTokens

__all__ = ["NoisedClipGuide", "make_clip"]


def make_clip(options: None, checkpoint: Checkpoint) -> NoisedClipGuide:
    """Factory of the guider `clip`.

    Raises:
        AssetError: If the checkpoint is no noised CLIP, or its parts do not fit together.
    """
    architecture = read_architecture(checkpoint, ClipArchitecture)
    names = {"image_encoder": "ImageEncoder", "text_encoder": "TextEncoder"}
    loaded = load_networks(
        checkpoint,
        {
            name: (f"glide_text2im.clip.encoders.{encoder}", architecture.config)
            for name, encoder in names.items()
        },
    )
    image_encoder, text_encoder = (loaded[name] for name in names)
    assert isinstance(image_encoder, ImageEncoder)
    assert isinstance(text_encoder, TextEncoder)
    config = NoisedClipConfig(**architecture.config)
    try:
        tokens = ClipTokens(architecture.tokenizer, config.n_vocab, config.max_text_len)
        return NoisedClipGuide(image_encoder, text_encoder, tokens, config)
    except (ValueError, UsageError) as error:
        reason = error.message if isinstance(error, UsageError) else error
        raise AssetError(
            f"{checkpoint.name!r}: {reason}", hint="its parts are those of different models"
        ) from error


@final
class NoisedClipGuide(GuidanceModel):
    """A CLIP trained on noisy images and conditioned on the noise level; its target is a text.

    Noise level, timestep and resizing are handled as in `AdmClassifierGuide`.

    Args:
        image_encoder: Embeds noisy images.
        text_encoder: Embeds the target.
        tokens: Tokenizer of the text encoder.
        config: Noise schedule, image size and logit scale.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        tokens: ClipTokens,
        config: NoisedClipConfig,
    ) -> None:
        super().__init__()
        self.network = image_encoder
        self._text_encoder = text_encoder
        self._tokens = tokens
        self._config = config
        self._schedule = noise_schedule(config.beta_schedule, config.n_timesteps)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W); their norm is the logit scale."""
        if level is None:
            t = torch.zeros(len(images), dtype=torch.int64)
        else:
            t = self._schedule.nearest_timestep(level)
        pixels = (at_size(images, self._config.image_size, noisy=level is not None) + 1.0) * 127.5
        embedding = self.network(pixels, t.to(images.device))
        return self._config.logit_scale * unit(embedding)

    @torch.no_grad()
    def target(self, given: TargetInput) -> Target:
        """The unit embedding of a text.

        Raises:
            UsageError: If the text is missing or empty.
        """
        if given.text is None or not given.text.strip():
            raise UsageError(
                f"{given.source or 'nothing'!r} is no text",
                hint='type what the image should show, such as "a red cube"',
            )
        tokens, length = self._tokens(given.text)
        device = next(self._text_encoder.parameters()).device
        embedding = unit(self._text_encoder(tokens.to(device), length.to(device)))
        return Target(value=embedding.float().cpu(), label=given.text.strip()[:80])

    def describe(self, prediction: Tensor) -> list[str]:
        """Always empty, since an embedding has no readable form."""
        return []
