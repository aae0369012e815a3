"""MiDaS_small (MiDaS v2.1 small): a depth network that transformers does not have.

The trunk is timm's `tf_efficientnet_lite3`, cut after strides 4, 8, 16 and 32. The decoder refines
the coarsest map and adds the finer ones in turn (RefineNet, Lin et al. 2017, arXiv 1611.06612). It
predicts disparity up to scale and shift (Ranftl et al., arXiv 1907.01341). Names of parameters are
those of the published `midas_v21_small_256.pt`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.author import Checkpoint, ImageInput, UsageError, load_into

__all__ = ["MODELS", "MidasSmall", "load_midas_small"]

MODELS = ("midas-small", "MiDaS_small")
"""The name after `--guider-model`, and the published one."""

_FILE = "https://github.com/isl-org/MiDaS/releases/download/v2_1/midas_v21_small_256.pt"
_CHANNELS = (32, 48, 136, 384)  # of the trunk's four maps, from fine to coarse
_WIDTHS = (64, 128, 256, 512)  # of the decoder's
_SIZE, _STRIDE = 256, 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Depth(NamedTuple):
    """The output: disparity (B, h, w)."""

    predicted_depth: Tensor


@final
class MidasSmall(nn.Module):
    """The network, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = timm.create_model("tf_efficientnet_lite3")
        blocks = trunk.blocks
        # timm's normalization applies the activation, which has a place of its own in the file.
        stem = (trunk.conv_stem, trunk.bn1, nn.Identity())
        self.pretrained = nn.Module()
        self.pretrained.layer1 = nn.Sequential(*stem, *blocks[:2])
        self.pretrained.layer2 = nn.Sequential(*blocks[2:3])
        self.pretrained.layer3 = nn.Sequential(*blocks[3:5])
        self.pretrained.layer4 = nn.Sequential(*blocks[5:])
        self.scratch = nn.Module()
        for index, (channels, width) in enumerate(zip(_CHANNELS, _WIDTHS, strict=True), start=1):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.scratch.add_module(f"layer{index}_rn", convolution)
        for index in (4, 3, 2, 1):
            width = _WIDTHS[index - 1]
            fusion = _Fusion(width, _WIDTHS[max(index - 2, 0)])
            self.scratch.add_module(f"refinenet{index}", fusion)
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(_WIDTHS[0], _WIDTHS[0] // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(_WIDTHS[0] // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(),
        )

    def forward(self, pixel_values: Tensor) -> Depth:
        """Disparity, at least 0, of normalized images (B, 3, h, w); multiples of 32 pixels."""
        maps, x = [], pixel_values
        for index in (1, 2, 3, 4):
            x = self.pretrained.get_submodule(f"layer{index}")(x)
            maps.append(self.scratch.get_submodule(f"layer{index}_rn")(x))
        path = None
        for index in (4, 3, 2, 1):
            path = self.scratch.get_submodule(f"refinenet{index}")(maps[index - 1], path)
        return Depth(self.scratch.get_submodule("output_conv")(path)[:, 0])


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + change


class _Fusion(nn.Module):
    """Adds a map of the trunk to the coarser path and doubles the resolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, out, 1)
        self.resConfUnit1 = _Residual(width)
        self.resConfUnit2 = _Residual(width)

    def forward(self, found: Tensor, path: Tensor | None) -> Tensor:
        # The coarsest one has nothing to be added to; its first unit exists and is never used.
        x = found if path is None else path + self.resConfUnit1(found)
        x = self.resConfUnit2(x)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        out: Tensor = self.out_conv(x)
        return out


def load_midas_small(
    checkpoint: Checkpoint | None, size: int | None
) -> tuple[MidasSmall, ImageInput]:
    """The network with its weights, and its preprocessing.

    Args:
        checkpoint: The published file, or one with the same names.
        size: Input side in pixels, rounded to a multiple of 32; by default 256.

    Raises:
        UsageError: If there is no checkpoint.
        AssetError: If the checkpoint does not fit.
    """
    if checkpoint is None:
        raise UsageError(
            f"model {MODELS[0]!r} needs its weights",
            hint=f"download {_FILE}, and add --guider-checkpoint FILE",
        )
    with torch.device("meta"):
        network = MidasSmall()
    load_into(network, checkpoint)
    side = _STRIDE * max(1, round((size or _SIZE) / _STRIDE))
    return network, ImageInput(size=side, mean=_MEAN, std=_STD, interpolation="bicubic")
