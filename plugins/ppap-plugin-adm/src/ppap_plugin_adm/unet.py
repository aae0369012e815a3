"""The ADM denoiser: a U-Net with attention (Dhariwal & Nichol 2021, arXiv 2105.05233)."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_plugin_adm.blocks import TorsoBlock, Upsample, group_norm, zeroed
from ppap_plugin_adm.config import TrunkConfig, UNetConfig
from ppap_plugin_adm.trunk import Trunk, attention_block, dtype_of, res_block


def decoder_blocks(
    config: TrunkConfig, skips: list[int], context_channels: int | None
) -> nn.ModuleList:
    """The decoder, one block for each skip; `skips` are their widths, finest first."""
    remaining = list(skips)
    channels = remaining[-1]
    blocks = nn.ModuleList()
    for level, width in reversed(list(enumerate(config.widths))):
        for index in range(config.num_res_blocks + 1):
            layers: list[nn.Module] = [res_block(config, channels + remaining.pop(), width)]
            channels = width
            if 2**level in config.attention_resolutions:
                layers.append(attention_block(config, channels, context_channels, decoder=True))
            if level > 0 and index == config.num_res_blocks:
                double: nn.Module = Upsample(
                    channels, use_conv=config.conv_resample and not config.resblock_updown
                )
                if config.resblock_updown:
                    double = res_block(config, channels, channels, double)
                layers.append(double)
            blocks.append(TorsoBlock(*layers, recompute=config.use_checkpoint))
    return blocks


def with_low_res(x: Tensor, low_res: Tensor) -> Tensor:
    """Resize low_res (B, c, h, w) and append it to x (B, C, H, W) along the channels."""
    resized = F.interpolate(low_res, x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([x, resized], dim=1)


class UNet(Trunk):
    """A trunk with a decoder; subclasses add the conditioning."""

    def __init__(
        self,
        config: TrunkConfig,
        *,
        in_channels: int,
        num_classes: int | None = None,
        context_channels: int | None = None,
    ) -> None:
        super().__init__(
            config,
            in_channels=in_channels,
            num_classes=num_classes,
            context_channels=context_channels,
        )
        self.output_blocks = decoder_blocks(config, self.skip_widths, context_channels)
        width = config.widths[0]
        self.out = nn.Sequential(
            group_norm(width),
            nn.SiLU(),
            zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1)),
        )

    def denoise(self, x: Tensor, embedding: Tensor, context: Tensor | None = None) -> Tensor:
        """Run the U-Net.

        Args:
            x: Network input (B, in_channels, H, W), H and W divisible by 2^(levels - 1).
            embedding: (B, E), sum of the time embedding and other global conditions.
            context: Tokens (B, S, D) for attention, if the network was built for them.

        Returns:
            (B, out_channels, H, W), float32 for any dtype of the torso.
        """
        h, skips = self.encode(x, embedding, context)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, context)
        output: Tensor = self.out(h.to(dtype_of(self.out)))
        return output


@final
class UNetModel(UNet):
    """The base denoiser, unconditional or class-conditional."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, in_channels=config.in_channels, num_classes=config.num_classes)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict noise, and raw variances if `out_channels` includes them.

        Args:
            x: Noisy images (B, in_channels, H, W), nominally in [-1, 1] plus noise.
            timesteps: (B,), original (not respaced) indices, integer or fractional.
            y: Class labels (B,), if and only if the network has classes.

        Raises:
            UsageError: If y is missing or superfluous.
        """
        return self.denoise(x, self.embed(timesteps, y))


@final
class SuperResModel(UNet):
    """A denoiser whose input includes the low-resolution image, resized."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, in_channels=2 * config.in_channels, num_classes=config.num_classes)

    def forward(
        self, x: Tensor, timesteps: Tensor, low_res: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """As `UNetModel`, with low_res (B, in_channels, h, w) in [-1, 1] at any size."""
        return self.denoise(with_low_res(x, low_res), self.embed(timesteps, y))
