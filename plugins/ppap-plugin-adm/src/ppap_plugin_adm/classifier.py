"""The ADM noise-aware classifier: the encoder half of the U-Net, with a head.

Dhariwal & Nichol 2021, arXiv 2105.05233, section 4.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_plugin_adm.blocks import group_norm, merge_heads, pointwise, split_heads, zeroed
from ppap_plugin_adm.config import EncoderConfig
from ppap_plugin_adm.trunk import Trunk, dtype_of

SPATIAL_WIDTH = 2048


@final
class AttentionPool(nn.Module):
    """Attention whose only query is the spatial mean (Radford et al. 2021, arXiv 2103.00020).

    Args:
        size: Height and width of the feature map; fixes the number of positions.
        channels: Its channels.
        heads: Number of heads, a divisor of `channels`.
        out_channels: Channels of the result.
    """

    def __init__(self, size: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, size, size) to (B, out_channels)."""
        pixels = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, C)
        tokens = torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1)
        tokens = tokens + self.positional_embedding.T
        q, k, v = split_heads(pointwise(self.qkv_proj, tokens), self.heads, 3, parts_first=True)
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return pointwise(self.c_proj, merge_heads(attended)).squeeze(1)


def spatial_head(width: int, out_channels: int, *, normalised: bool) -> nn.Sequential:
    """An MLP over channel means; `normalised` is "spatial_v2"."""
    middle: list[nn.Module] = [group_norm(SPATIAL_WIDTH), nn.SiLU()] if normalised else [nn.ReLU()]
    return nn.Sequential(
        nn.Linear(width, SPATIAL_WIDTH), *middle, nn.Linear(SPATIAL_WIDTH, out_channels)
    )


@final
class EncoderUNetModel(Trunk):
    """Logits (or any vector of `out_channels`) of noisy images."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config, in_channels=config.in_channels)
        channels = self.skip_widths[-1]
        self.pools_every_block = config.pool in ("spatial", "spatial_v2")
        if self.pools_every_block:
            self.out = spatial_head(
                sum(self.skip_widths) + channels,
                config.out_channels,
                normalised=config.pool == "spatial_v2",
            )
        elif config.pool == "attention":
            size = config.image_size // 2 ** (len(config.widths) - 1)
            pool = AttentionPool(size, channels, config.heads(channels), config.out_channels)
            self.out = nn.Sequential(group_norm(channels), nn.SiLU(), pool)
        else:
            self.out = nn.Sequential(
                group_norm(channels),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(1),
                zeroed(nn.Conv2d(channels, config.out_channels, 1)),
                nn.Flatten(),
            )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Classify noisy images.

        Args:
            x: Noisy images (B, in_channels, H, W), nominally in [-1, 1] plus noise; attention
                pooling fixes H = W = image_size.
            timesteps: (B,), original (not respaced) indices, integer or fractional.

        Returns:
            (B, out_channels), float32 for any dtype of the torso.
        """
        h, features = self.encode(x, self.embed(timesteps))
        dtype = dtype_of(self.out)
        if self.pools_every_block:
            h = torch.cat([f.to(dtype).mean(dim=(2, 3)) for f in [*features, h]], dim=-1)
        output: Tensor = self.out(h.to(dtype))
        return output
