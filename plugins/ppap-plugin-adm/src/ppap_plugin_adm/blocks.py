"""Building blocks of the ADM U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233, section 3).

Feature maps are (B, C, H, W); every operation keeps their memory format. Attention works on tokens
(B, L, C), which in channels-last are a view of the feature map.
Norms are computed in float32 at least, for any dtype of the convolutions. Parameter names are
those of the released checkpoints.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppap_plugin_adm.config import NORM_GROUPS

M = TypeVar("M", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of a timestep, cosines first (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: (B,), integer or fractional.
        dim: Number of features; an odd one gets a zero column.

    Returns:
        (B, dim) in float32: cos(t w_i), sin(t w_i) with w_i = 10000^(-i / (dim // 2)).
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(10_000) * index / half)
    angles = timesteps.float()[:, None] * frequencies  # (B, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


def group_norm(channels: int) -> nn.GroupNorm:
    """The norm used throughout: 32 groups, affine."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-5)


def zeroed(module: M) -> M:
    """Set all parameters to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def normalise(norm: nn.Module, h: Tensor) -> Tensor:
    """Apply a norm in float32 (or wider, if h is), returning h's dtype."""
    normalised: Tensor = norm(h.to(torch.promote_types(h.dtype, torch.float32)))
    return normalised.to(h.dtype)


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale-shift conditioning, h (1 + scale) + shift: (B, C, H, W) with (B, C, 1, 1)."""
    return torch.addcmul(shift, h, 1 + scale)


def resample_and_convolve(h: Tensor, resample: nn.Module, conv: nn.Module) -> Tensor:
    """Resampling comes first, so that a level's filters see that level's pixels."""
    convolved: Tensor = conv(resample(h))
    return convolved


def pointwise(conv: nn.Conv1d, tokens: Tensor) -> Tensor:
    """Apply a kernel-1 `Conv1d` to tokens (B, L, C) instead of (B, C, L), without a transpose."""
    return F.linear(tokens, conv.weight.squeeze(-1), conv.bias)


def split_heads(packed: Tensor, heads: int, parts: int, *, parts_first: bool) -> list[Tensor]:
    """Take packed projections (B, L, parts * heads * c) apart, into `parts` of (B, heads, L, c).

    The channel axis is [part][head][c] when `parts_first`, else [head][part][c]. Both have the same
    size, so a checkpoint read in the wrong order loads without an error.
    """
    batch, length, _ = packed.shape
    if parts_first:
        unpacked = packed.view(batch, length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    else:
        unpacked = packed.view(batch, length, heads, parts, -1).permute(3, 0, 2, 1, 4)
    return list(unpacked.unbind())


def merge_heads(attended: Tensor) -> Tensor:
    """(B, heads, L, c) to (B, L, heads * c)."""
    return attended.transpose(1, 2).flatten(2)


class ConditionedBlock(nn.Module, ABC):
    """A layer of the torso with conditioning inputs."""

    @abstractmethod
    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """Transform h (B, C, H, W) given the time embedding (B, E) and context tokens (B, S, D)."""


@final
class Downsample(nn.Module):
    """Halve height and width, by a strided 3x3 convolution or a 2x2 mean."""

    def __init__(self, channels: int, *, use_conv: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.AvgPool2d(2)
        if use_conv:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        halved: Tensor = self.op(h)
        return halved


@final
class Upsample(nn.Module):
    """Double height and width by nearest neighbour, then an optional 3x3 convolution."""

    def __init__(self, channels: int, *, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        doubled: Tensor = self.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
        return doubled


@final
class ResBlock(ConditionedBlock):
    """Two normalised 3x3 convolutions around the time embedding, plus a skip.

    Args:
        channels: Input channels.
        out_channels: Output channels; if they differ, a 1x1 convolution carries the skip.
        embedding_width: Width of the time embedding.
        dropout: Probability, between the second norm and the second convolution.
        scale_shift: Let the embedding modulate the second norm, instead of being added before it.
        resample: A module without parameters that changes the resolution of both paths.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = nn.Identity() if resample is None else resample
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding_width, (2 if scale_shift else 1) * out_channels)
        )
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, channels, H, W) to (B, out_channels, H', W'); the context is ignored."""
        skip: Tensor = self.skip_connection(self.resample(h))
        norm, activation, conv = self.in_layers
        h = resample_and_convolve(activation(normalise(norm, h)), self.resample, conv)
        condition = self.emb_layers(embedding).to(h.dtype)[:, :, None, None]
        norm, activation, dropout, conv = self.out_layers
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = modulate(normalise(norm, h), scale, shift)
        else:
            h = normalise(norm, h + condition)
        residual: Tensor = conv(dropout(activation(h)))
        return skip + residual


@final
class AttentionBlock(ConditionedBlock):
    """Residual self-attention over the pixels and any context tokens.

    Args:
        channels: Input and output channels.
        heads: Number of heads, a divisor of `channels`.
        new_order: Pack the projection as [q, k, v][head] instead of [head][q, k, v].
        context_channels: Width of the context tokens; None for pure self-attention.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        new_order: bool = False,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = (
            None if context_channels is None else nn.Conv1d(context_channels, 2 * channels, 1)
        )
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to the same; context keys and values come before those of the pixels."""
        tokens = normalise(self.norm, h).permute(0, 2, 3, 1).flatten(1, 2)  # (B, L, C)
        q, k, v = split_heads(
            pointwise(self.qkv, tokens), self.heads, 3, parts_first=self.new_order
        )  # (B, heads, L, c)
        if self.encoder_kv is not None and context is not None:
            packed = pointwise(self.encoder_kv, context.to(h.dtype))
            context_k, context_v = split_heads(packed, self.heads, 2, parts_first=self.new_order)
            k, v = torch.cat([context_k, k], dim=2), torch.cat([context_v, v], dim=2)
        attended = pointwise(self.proj_out, merge_heads(F.scaled_dot_product_attention(q, k, v)))
        batch, channels, height, width = h.shape
        return h + attended.view(batch, height, width, channels).permute(0, 3, 1, 2)


@final
class TorsoBlock(nn.ModuleList):
    """Layers in sequence; conditioned ones receive the embedding and the context.

    Args:
        layers: Layers in order; parameter names also count layers without parameters.
        recompute: In training, recompute conditioned layers in the backward pass to save memory.
    """

    def __init__(self, *layers: nn.Module, recompute: bool = False) -> None:
        super().__init__(layers)
        self.recompute = recompute

    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """Transform h (B, C, H, W) given the time embedding (B, E) and context tokens (B, S, D)."""
        for layer in self:
            if not isinstance(layer, ConditionedBlock):
                h = layer(h)
            elif self.recompute and self.training and torch.is_grad_enabled():
                h = checkpoint(layer, h, embedding, context, use_reentrant=False)
            else:
                h = layer(h, embedding, context)
        return h
