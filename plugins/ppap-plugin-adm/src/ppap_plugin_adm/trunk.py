"""Common part of ADM denoiser and classifier: time embedding, encoder and middle block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ppap_framework.author import UsageError
from ppap_plugin_adm.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TorsoBlock,
    timestep_embedding,
)
from ppap_plugin_adm.config import TrunkConfig

TORSO = ("input_blocks", "middle_block", "output_blocks")


def dtype_of(module: nn.Module) -> torch.dtype:
    """Dtype of a module's first parameter."""
    return next(module.parameters()).dtype


def res_block(
    config: TrunkConfig, channels: int, out_channels: int, resample: nn.Module | None = None
) -> ResBlock:
    """A residual block of this architecture; `resample` changes its resolution."""
    return ResBlock(
        channels,
        out_channels,
        config.embedding_width,
        dropout=config.dropout,
        scale_shift=config.use_scale_shift_norm,
        resample=resample,
    )


def attention_block(
    config: TrunkConfig, channels: int, context_channels: int | None, *, decoder: bool = False
) -> AttentionBlock:
    """An attention block of this architecture."""
    return AttentionBlock(
        channels,
        config.heads(channels, decoder=decoder),
        new_order=config.new_attention_order,
        context_channels=context_channels,
    )


def encoder_blocks(
    config: TrunkConfig, in_channels: int, context_channels: int | None
) -> tuple[nn.ModuleList, list[int]]:
    """The encoder and the widths of its outputs, the skips of a decoder, finest first."""
    channels = config.widths[0]
    blocks = nn.ModuleList([TorsoBlock(nn.Conv2d(in_channels, channels, 3, padding=1))])
    skips = [channels]
    for level, width in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [res_block(config, channels, width)]
            channels = width
            if 2**level in config.attention_resolutions:
                layers.append(attention_block(config, channels, context_channels))
            blocks.append(TorsoBlock(*layers, recompute=config.use_checkpoint))
            skips.append(channels)
        if level < len(config.widths) - 1:
            halve: nn.Module = Downsample(
                channels, use_conv=config.conv_resample and not config.resblock_updown
            )
            if config.resblock_updown:
                halve = res_block(config, channels, channels, halve)
            blocks.append(TorsoBlock(halve, recompute=config.use_checkpoint))
            skips.append(channels)
    return blocks, skips


class Trunk(nn.Module, ABC):
    """Time embedding, encoder and middle block.

    Args:
        config: The architecture.
        in_channels: Channels of the first convolution.
        num_classes: Size of the label embedding; None for no labels.
        context_channels: Width of the context tokens for attention; None for none.
    """

    def __init__(
        self,
        config: TrunkConfig,
        *,
        in_channels: int,
        num_classes: int | None = None,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_width
        self.time_embed = nn.Sequential(
            nn.Linear(config.model_channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, width)
        self.input_blocks, self.skip_widths = encoder_blocks(config, in_channels, context_channels)
        channels = self.skip_widths[-1]
        self.middle_block = TorsoBlock(
            res_block(config, channels, channels),
            attention_block(config, channels, context_channels),
            res_block(config, channels, channels),
            recompute=config.use_checkpoint,
        )

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate the network on noisy images (B, C, H, W) at timesteps (B,)."""

    @property
    def torso_dtype(self) -> torch.dtype:
        """Dtype in which the torso computes: that of its convolutions."""
        return dtype_of(self.input_blocks)

    def cast_torso(self, dtype: torch.dtype) -> None:
        """Cast the torso's convolutions; linear layers, norms and the head keep their dtype.

        The released denoisers ran in float16 (`use_fp16`); bfloat16 also works.
        """
        for name, part in self.named_children():
            if name in TORSO:
                for module in part.modules():
                    if isinstance(module, nn.Conv1d | nn.Conv2d):
                        module.to(dtype)

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Embedding (B, E) of timesteps (B,), plus that of labels y (B,) if there are classes.

        Raises:
            UsageError: If labels are given to a network without classes, missing from one with
                classes, or not one for each timestep.
        """
        if (y is None) != (self.label_emb is None):
            raise UsageError(
                "class labels were given to a network without classes"
                if self.label_emb is None
                else "a class-conditional network got no class labels",
                hint="pass y, of shape (B,), if and only if the network has num_classes",
            )
        if y is not None and y.shape != timesteps.shape:
            raise UsageError(
                f"class labels have shape {tuple(y.shape)}, timesteps {tuple(timesteps.shape)}",
                hint="pass one label an image",
            )
        features = timestep_embedding(timesteps, self.config.model_channels)
        embedding: Tensor = self.time_embed(features.to(dtype_of(self.time_embed)))
        if self.label_emb is not None:
            embedding = embedding + self.label_emb(y)
        return embedding

    def encode(
        self, x: Tensor, embedding: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle block's output and those of all encoder blocks, in the torso's dtype."""
        h = x.to(self.torso_dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, embedding, context)
            skips.append(h)
        return self.middle_block(h, embedding, context), skips
