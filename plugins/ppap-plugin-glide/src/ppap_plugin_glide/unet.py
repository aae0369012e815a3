"""GLIDE's denoisers: ADM's U-Net, conditioned on text (Nichol et al. 2021, arXiv 2112.10741).

The text enters the U-Net twice: the last token of the transformer's output is projected and added
to the time embedding, and every attention layer attends to all tokens beside the pixels.
"""

from __future__ import annotations

from abc import ABC
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from ppap_framework.author import UsageError
from ppap_plugin_adm.blocks import normalise
from ppap_plugin_adm.trunk import dtype_of
from ppap_plugin_adm.unet import UNet, with_low_res
from ppap_plugin_glide.config import TextUNetConfig
from ppap_plugin_glide.text import Transformer

__all__ = [
    "EncodedText",
    "InpaintText2ImUNet",
    "SuperResInpaintText2ImUnet",
    "SuperResText2ImUNet",
    "Text2ImUNet",
    "TextUNet",
]


class EncodedText(NamedTuple):
    """B encoded texts; a tuple, since torch.compile supports it.

    Attributes:
        pooled: (B, E), added to the time embedding.
        tokens: (B, L, C), for attention.
    """

    pooled: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> EncodedText:
        """Move to a device."""
        return EncodedText(self.pooled.to(device), self.tokens.to(device))

    @staticmethod
    def joined(first: EncodedText, second: EncodedText) -> EncodedText:
        """Concatenate along the batch."""
        return EncodedText(
            torch.cat([first.pooled, second.pooled]), torch.cat([first.tokens, second.tokens])
        )


def last_token(tokens: Tensor) -> Tensor:
    """The last position, even if padding, represents the whole text: (B, L, C) to (B, C)."""
    return tokens[:, -1]


def replace_padding(embedded: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    """Replace the embeddings of padding, including their positions.

    Args:
        embedded: (B, L, C).
        mask: (B, L), bool; False is padding.
        padding: (L, C).
    """
    return torch.where(mask[..., None], embedded, padding)


def with_known(x: Tensor, image: Tensor | None, mask: Tensor | None) -> Tensor:
    """Stack noisy images, known pixels and mask along the channels: (B, 7, H, W).

    Args:
        x: Noisy images (B, 3, H, W).
        image: (B, 3, H, W) in [-1, 1]; None if nothing is known.
        mask: (B, 1, H, W), 1 where the image is known; None if nothing is known.
    """
    image = torch.zeros_like(x) if image is None else image
    mask = torch.zeros_like(x[:, :1]) if mask is None else mask
    return torch.cat([x, masked(image, mask), mask], dim=1)


def masked(image: Tensor, mask: Tensor) -> Tensor:
    """The image, with unknown pixels set to zero."""
    return image * mask


class TextUNet(UNet, ABC):
    """A U-Net with a text transformer; subclasses add input channels to the noisy image.

    Args:
        config: The architecture.
        in_channels: Channels of the first convolution.
    """

    def __init__(self, config: TextUNetConfig, *, in_channels: int) -> None:
        super().__init__(config, in_channels=in_channels, context_channels=config.xf_width)
        width = config.xf_width
        self.vocabulary = config.tokenizer["n_vocab"]
        self.text_ctx = config.text_ctx
        self.transformer = Transformer(width, config.xf_layers, config.xf_heads)
        self.final_ln = nn.LayerNorm(width, eps=1e-5) if config.xf_final_ln else nn.Identity()
        self.token_embedding = nn.Embedding(self.vocabulary, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.text_ctx, width))
        self.transformer_proj = nn.Linear(width, config.embedding_width)
        self.padding_embedding = (
            nn.Parameter(0.01 * torch.randn(config.text_ctx, width)) if config.xf_padding else None
        )

    def encode_text(self, tokens: Tensor, mask: Tensor | None = None) -> EncodedText:
        """Encode texts; the result is valid for every timestep.

        Args:
            tokens: (B, text_ctx), int64.
            mask: (B, text_ctx), bool, False where a token is padding; required if padding has its
                own embedding, else ignored.

        Raises:
            UsageError: If the mask is missing.
        """
        h = self.token_embedding(tokens) + self.positional_embedding  # (B, L, C)
        if self.padding_embedding is not None:
            if mask is None:
                raise UsageError("the mask of the text is missing", hint="True marks real tokens")
            h = replace_padding(h, mask, self.padding_embedding)
        h = self.transformer(h.to(dtype_of(self.transformer_proj)))
        h = normalise(self.final_ln, h)
        return EncodedText(self.transformer_proj(last_token(h)), h)

    def read(self, tokens: Tensor | EncodedText, mask: Tensor | None) -> EncodedText:
        """Encode tokens, or return already encoded texts."""
        return tokens if isinstance(tokens, EncodedText) else self.encode_text(tokens, mask)

    def predict(self, x: Tensor, timesteps: Tensor, text: EncodedText) -> Tensor:
        """Run the U-Net.

        Args:
            x: (B, in_channels, H, W), noisy images with any additional channels.
            timesteps: (B,), original (not respaced) indices.
            text: Output of `encode_text` for B texts.

        Returns:
            (B, out_channels, H, W), float32 for any dtype of the torso.
        """
        embedding = self.embed(timesteps)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.denoise(x, embedding + text.pooled.to(embedding), text.tokens)

    def cast(self, dtype: torch.dtype) -> None:
        """Cast the torso's convolutions and the linear and embedding layers of the text encoder.

        Norms, the embeddings of positions and padding, and the head keep their dtype.
        """
        self.cast_torso(dtype)
        for part in (self.transformer, self.token_embedding, self.transformer_proj):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    module.to(dtype)


@final
class Text2ImUNet(TextUNet):
    """The base denoiser."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__(config, in_channels=config.in_channels)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        tokens: Tensor | EncodedText,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Predict noise, and raw variances if `out_channels` includes them.

        Args:
            x: Noisy images (B, in_channels, H, W), nominally in [-1, 1] plus noise.
            timesteps: (B,), original (not respaced) indices.
            tokens: Tokens as for `encode_text`, or its output.
            mask: Mask as for `encode_text`.
        """
        return self.predict(x, timesteps, self.read(tokens, mask))


@final
class SuperResText2ImUNet(TextUNet):
    """A denoiser whose input includes the low-resolution image, resized."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__(config, in_channels=2 * config.in_channels)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        low_res: Tensor,
        tokens: Tensor | EncodedText,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `Text2ImUNet`, with low_res (B, in_channels, h, w) in [-1, 1] at any size."""
        return self.predict(with_low_res(x, low_res), timesteps, self.read(tokens, mask))


@final
class InpaintText2ImUNet(TextUNet):
    """A base denoiser whose input includes the pixels to keep."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__(config, in_channels=2 * config.in_channels + 1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        tokens: Tensor | EncodedText,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `Text2ImUNet`, with image and mask as for `with_known`."""
        seen = with_known(x, inpaint_image, inpaint_mask)
        return self.predict(seen, timesteps, self.read(tokens, mask))


@final
class SuperResInpaintText2ImUnet(TextUNet):
    """A denoiser whose input includes the pixels to keep and the low-resolution image."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__(config, in_channels=3 * config.in_channels + 1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        low_res: Tensor,
        tokens: Tensor | EncodedText,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `InpaintText2ImUNet`, with low_res as for `SuperResText2ImUNet`."""
        seen = with_low_res(with_known(x, inpaint_image, inpaint_mask), low_res)
        return self.predict(seen, timesteps, self.read(tokens, mask))
