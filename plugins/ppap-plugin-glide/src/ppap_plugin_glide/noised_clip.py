"""The noised CLIP: encoders for noisy images and for texts, with a shared embedding space.

Nichol et al. 2021, arXiv 2112.10741, section 4.4: a CLIP (Radford et al. 2021, arXiv 2103.00020)
trained on noised images and conditioned on their timestep, whose embedding takes the place of the
image encoder's class token. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_plugin_glide.config import ImageEncoderConfig, NoisedClipConfig, TextEncoderConfig

__all__ = ["ImageEncoder", "NoisedClip", "TextEncoder"]

_MEAN = (122.77093945, 116.74601272, 104.09373519)  # of red, green and blue, 0 to 255
_STD = (68.50053285, 66.63215831, 70.32316309)


@final
class Norm(nn.Module):
    """Layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        """(..., C) to the same."""
        return F.layer_norm(h, self.g.shape, self.g, self.b, eps=1e-5)


@final
class Affine(nn.Module):
    """A linear layer."""

    def __init__(self, width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(out_width, width) / width**0.5)
        self.b = nn.Parameter(torch.zeros(out_width)) if bias else None

    def forward(self, h: Tensor) -> Tensor:
        """(..., C) to (..., C')."""
        return F.linear(h, self.w, self.b)


@final
class Attention(nn.Module):
    """A norm and self-attention; keys have no bias, since softmax cancels it."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.ln = Norm(width)
        self.f_q = Affine(width, width)
        self.f_k = Affine(width, width, bias=False)
        self.f_v = Affine(width, width)
        self.f_c = Affine(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        h = self.ln(h)
        q, k, v = (
            project(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, c)
            for project in (self.f_q, self.f_k, self.f_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        projected: Tensor = self.f_c(attended.transpose(1, 2).flatten(2))
        return projected


@final
class Mlp(nn.Module):
    """A norm and two layers around an exact GELU, with hidden width 4 C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = Norm(width)
        self.f_1 = Affine(width, 4 * width)
        self.f_2 = Affine(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        projected: Tensor = self.f_2(F.gelu(self.f_1(self.ln(h))))
        return projected


@final
class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.f_attn = Attention(width, heads, causal=causal)
        self.f_mlp = Mlp(width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        h = h + self.f_attn(h)
        result: Tensor = h + self.f_mlp(h)
        return result


@final
class Patches(nn.Module):
    """Image patches as tokens, after one token for the timestep."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        count = (config.image_size // config.patch_size) ** 2
        fan_in = 3 * config.patch_size**2
        patch = (config.width, 3, config.patch_size, config.patch_size)
        self.w_t = nn.Parameter(torch.randn(config.n_timestep, config.width) / config.width**0.5)
        self.patch_proj = nn.Parameter(torch.randn(patch) / fan_in**0.5)
        self.w_pos = nn.Parameter(torch.randn(count + 1, config.width) / config.width**0.5)
        self.ln = Norm(config.width)

    def forward(self, pixels: Tensor, timesteps: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) and timesteps (B,), int64, to (B, 1 + H W / P^2, C)."""
        patches = F.conv2d(pixels, self.patch_proj, stride=self.patch_size)
        tokens = torch.cat([self.w_t[timesteps][:, None], patches.flatten(2).mT], dim=1)
        normed: Tensor = self.ln(tokens + self.w_pos)
        return normed


@final
class Words(nn.Module):
    """Embeddings of tokens and positions."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        scale = config.width**-0.5
        self.w_voc = nn.Parameter(torch.randn(config.n_bpe_vocab, config.width) * scale)
        self.w_pos = nn.Parameter(torch.randn(config.max_text_len, config.width) * scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L), int64, to (B, L, C)."""
        return F.embedding(tokens, self.w_voc) + self.w_pos


@final
class Readout(nn.Module):
    """Projects one token to the embedding."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.ln = Norm(width)
        self.f = Affine(width, out_width, bias=False)

    def forward(self, token: Tensor) -> Tensor:
        """(B, C) to (B, D)."""
        embedding: Tensor = self.f(self.ln(token))
        return embedding


@final
class ImageEncoder(nn.Module):
    """Embeds noisy images."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        blocks: dict[str, nn.Module] = {"input": Patches(config)}
        for index in range(config.n_xf_blocks):
            blocks[f"block_{index}"] = Block(config.width, config.n_head, causal=False)
        blocks["output"] = Readout(config.width, config.n_embd)
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, pixels: Tensor, timesteps: Tensor) -> Tensor:
        """Embed noisy images.

        Args:
            pixels: (B, 3, H, W), nominally from 0 to 255, H = W = image_size.
            timesteps: (B,), int64, original (not respaced) indices.

        Returns:
            (B, n_embd), not normalised.
        """
        mean, std = pixels.new_tensor([_MEAN, _STD])[:, :, None, None]  # each (3, 1, 1)
        first, *blocks, last = self.blocks.values()
        h = first((pixels - mean) / std, timesteps)
        for block in blocks:
            h = block(h)
        embedding: Tensor = last(h[:, 0])
        return embedding


@final
class TextEncoder(nn.Module):
    """Embeds texts with causal attention."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        blocks: dict[str, nn.Module] = {"input": Words(config)}
        for index in range(config.n_xf_blocks):
            blocks[f"block_{index}"] = Block(config.width, config.n_head, causal=True)
        blocks["output"] = Readout(config.width, config.n_embd)
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embed texts.

        Args:
            tokens: (B, max_text_len), int64; tokens after a text's end are ignored.
            lengths: (B,), int64, number of tokens of each text, its end included.

        Returns:
            (B, n_embd), not normalised.
        """
        first, *blocks, last = self.blocks.values()
        h = first(tokens)
        for block in blocks:
            h = block(h)
        embedding: Tensor = last(h[torch.arange(len(h), device=h.device), lengths - 1])
        return embedding


@final
class NoisedClip(nn.Module):
    """Both encoders."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.image_encoder)
        self.text_encoder = TextEncoder(config.text_encoder)

    def embed_images(self, images: Tensor, timesteps: Tensor) -> Tensor:
        """Unit embeddings (B, n_embd) of noisy images (B, 3, H, W), nominally in [-1, 1]."""
        return unit(self.image_encoder((images + 1.0) * 127.5, timesteps))

    def embed_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Unit embeddings (B, n_embd) of texts; arguments as for `TextEncoder`."""
        return unit(self.text_encoder(tokens, lengths))


def unit(embedding: Tensor) -> Tensor:
    """Normalise (B, D) to length 1."""
    length: Tensor = embedding.norm(dim=-1, keepdim=True)
    return embedding / (length + 1e-12)
