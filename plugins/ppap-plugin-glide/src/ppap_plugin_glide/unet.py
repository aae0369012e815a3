"""GLIDE's denoisers: ADM's U-Net, told a text (Nichol et al. 2021, arXiv 2112.10741).

A text reaches the U-Net twice: one token of the transformer's output, projected, is added to the
time embedding; and every attention layer looks at all of them beside the pixels.
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
    """What the text transformer makes of B texts; a tuple, since torch.compile follows one.

    Attributes:
        pooled: (B, E), to be added to the time embedding.
        tokens: (B, L, C), for attention.
    """

    pooled: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> EncodedText:
        """The same on a device."""
        return EncodedText(self.pooled.to(device), self.tokens.to(device))

    @staticmethod
    def joined(first: EncodedText, second: EncodedText) -> EncodedText:
        """The texts of both, one behind the other."""
        return EncodedText(
            torch.cat([first.pooled, second.pooled]), torch.cat([first.tokens, second.tokens])
        )


def last_token(tokens: Tensor) -> Tensor:
    """The last position, padding or not, speaks for the whole text: (B, L, C) to (B, C)."""
    return tokens[:, -1]


def replace_padding(embedded: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
    """Tokens (B, L, C) with those of padding replaced, position and all.

    Args:
        embedded: (B, L, C).
        mask: (B, L), bool; False is padding.
        padding: (L, C).
    """
    return torch.where(mask[..., None], embedded, padding)


def with_known(x: Tensor, image: Tensor | None, mask: Tensor | None) -> Tensor:
    """x (B, 3, H, W), below it the pixels that are known, and the mask: (B, 7, H, W).

    Args:
        x: Noisy images.
        image: (B, 3, H, W) in [-1, 1]; None for nothing known.
        mask: (B, 1, H, W), 1 where the image is known; None likewise.
    """
    image = torch.zeros_like(x) if image is None else image
    mask = torch.zeros_like(x[:, :1]) if mask is None else mask
    return torch.cat([x, masked(image, mask), mask], dim=1)


def masked(image: Tensor, mask: Tensor) -> Tensor:
    """The image, zero where it is not known."""
    return image * mask


class TextUNet(UNet, ABC):
    """A U-Net with a text transformer; what is stacked below the noisy image is the subclass's.

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
        """Read texts; one reading serves every timestep.

        Args:
            tokens: (B, text_ctx), int64.
            mask: (B, text_ctx), bool, False where a token is padding; needed where padding has an
                embedding of its own, else ignored.

        Raises:
            UsageError: if the mask is missing.
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
        """What `encode_text` gives, or gave before."""
        return tokens if isinstance(tokens, EncodedText) else self.encode_text(tokens, mask)

    def predict(self, x: Tensor, timesteps: Tensor, text: EncodedText) -> Tensor:
        """Run the U-Net.

        Args:
            x: (B, in_channels, H, W), noisy images and whatever is stacked below them.
            timesteps: (B,), original (not respaced) indices.
            text: What `encode_text` gave for B texts.

        Returns:
            (B, out_channels, H, W), float32 whatever the torso computes in.
        """
        embedding = self.embed(timesteps)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.denoise(x, embedding + text.pooled.to(embedding), text.tokens)

    def cast(self, dtype: torch.dtype) -> None:
        """Cast the torso's convolutions, and what is linear in the text transformer; norms, the
        embeddings of positions and padding, and the head keep their dtype.
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
        """Predict noise, and raw variances where `out_channels` has room for them.

        Args:
            x: Noisy images (B, in_channels, H, W), nominally in [-1, 1] plus noise.
            timesteps: (B,), original (not respaced) indices.
            tokens: (B, text_ctx), int64, as for `encode_text`, as is `mask`; or what that gave.
            mask: (B, text_ctx), bool.
        """
        return self.predict(x, timesteps, self.read(tokens, mask))


@final
class SuperResText2ImUNet(TextUNet):
    """A denoiser that also sees the low-resolution image, resized and stacked below x."""

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
    """A base denoiser that also sees the pixels that are to be kept."""

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
        """As `Text2ImUNet`, with an image (B, 3, H, W) in [-1, 1] and where it is known (B, 1, H,
        W).
        """
        seen = with_known(x, inpaint_image, inpaint_mask)
        return self.predict(seen, timesteps, self.read(tokens, mask))


@final
class SuperResInpaintText2ImUnet(TextUNet):
    """A denoiser that sees the pixels that are to be kept, and the low-resolution image."""

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
