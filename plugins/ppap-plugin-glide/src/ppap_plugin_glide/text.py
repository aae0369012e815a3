"""The text transformer that reads a prompt (Nichol et al. 2021, arXiv 2112.10741, section 4).

Tokens are (B, L, C) throughout. Attention is neither causal nor masked: padding has an embedding
of its own and is attended to like any other token. Norms are computed in float32 at least.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from ppap_plugin_adm.blocks import merge_heads, normalise, split_heads

__all__ = ["Transformer"]


@final
class Attention(nn.Module):
    """Self-attention over all tokens.

    Args:
        width: C.
        heads: Number of heads, a divisor of `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        q, k, v = split_heads(self.c_qkv(h), self.heads, 3, parts_first=False)  # (B, heads, L, c)
        projected: Tensor = self.c_proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return projected


@final
class Mlp(nn.Module):
    """Two layers around an exact GELU, with hidden width 4 C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        projected: Tensor = self.c_proj(F.gelu(self.c_fc(h)))
        return projected


@final
class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width, eps=1e-5)

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        h = h + self.attn(normalise(self.ln_1, h))
        result: Tensor = h + self.mlp(normalise(self.ln_2, h))
        return result


@final
class Transformer(nn.Module):
    """Blocks in sequence.

    Args:
        width: C.
        layers: Number of blocks.
        heads: Heads of each block, a divisor of `width`.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, h: Tensor) -> Tensor:
        """(B, L, C) to the same."""
        for block in self.resblocks:
            h = block(h)
        return h
