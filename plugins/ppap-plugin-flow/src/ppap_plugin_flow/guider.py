"""RAFT's features as a guide: correspondence with a reference picture.

RAFT (Teed and Deng 2020, arXiv 2003.12039) reads both pictures of a pair by one feature encoder and
correlates all pairs of places. A guide reads images only, so the reference's features are part of
the target, and the loss correlates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import instance_of
from torch import Tensor
from torchvision.models import get_model, get_model_weights

from ppap_framework.author import (
    Checkpoint,
    GuidanceModel,
    ImageInput,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
    downloading,
    in_torch_hub,
    load_into,
    read_architecture,
)
from ppap_plugin_flow.motion import read_flow
from ppap_plugin_flow.options import FlowOptions

__all__ = ["FlowGuide", "make_flow"]

_SHOWN = 512  # largest side of the picture in grids


@attrs.frozen(kw_only=True)
class _Architecture:
    """Architecture record of a checkpoint."""

    model: str = attrs.field(validator=instance_of(str))


def make_flow(options: FlowOptions, checkpoint: Checkpoint | None) -> FlowGuide:
    """Factory of the guider `flow`.

    Raises:
        UsageError: If the checkpoint is of another model.
        AssetError: If the weights do not fit or cannot be downloaded.
    """
    if checkpoint is not None and checkpoint.architecture:
        stated = read_architecture(checkpoint, _Architecture).model
        if stated != options.model:
            raise UsageError(
                f"{checkpoint.name!r} is a {stated}, not a {options.model}",
                hint=f"add --guider-model {stated}",
            )
    if checkpoint is not None:
        network: Any = get_model(options.model, weights=None)
        load_into(network, checkpoint)
    else:
        weights = get_model_weights(options.model).DEFAULT
        hint = f"download {weights.url} elsewhere, then add --guider-checkpoint FILE"
        here = in_torch_hub(weights.url)
        with downloading(f"torchvision's weights of {options.model!r}", hint, here=here):
            network = get_model(options.model, weights=weights, progress=False)
    return FlowGuide(network, options)


@final
class FlowGuide(GuidanceModel):
    """The frozen feature encoder of a RAFT.

    Args:
        raft: torchvision's network, of which only the feature encoder is kept.
        options: Input size and wanted flow.
    """

    def __init__(self, raft: Any, options: FlowOptions | None = None) -> None:
        super().__init__()
        self._options = options or FlowOptions()
        self.network = raft.feature_encoder
        # RAFT is trained on images in [-1, 1].
        self.shown = ImageInput(size=self._options.size, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Features (B, C, size / 8, size / 8) of images (B, 3, H, W); the level is ignored."""
        features: Tensor = self.network(self.shown(images))
        return features

    @torch.no_grad()
    def target(self, given: TargetInput) -> Target:
        """Features of a reference picture and the wanted flow in cells: (1, C + 2, h, w).

        Raises:
            UsageError: If it is no picture, or the flow is not of its size.
            AssetError: If the flow cannot be read.
        """
        if given.image is None:
            raise UsageError(
                f"{(given.text or given.source)[:60]!r} is no reference picture",
                hint="give the path of a picture; --guider-option flow=... says how it moves",
            )
        picture = given.pixels()
        height, width = picture.shape[1:]
        features = self(picture[None].to(next(self.network.parameters()).device)).cpu()
        size = features.shape[-2:]
        cells = torch.tensor([size[1] / width, size[0] / height])[:, None, None]
        flow = read_flow(self._options.flow, height, width) * cells
        flow = F.interpolate(flow[None], size, mode="nearest-exact")
        name = Path(given.source).name or "a picture"
        moved = f", moved by {Path(self._options.flow).name}" if self._options.flow else ""
        if max(height, width) > _SHOWN:
            factor = _SHOWN / max(height, width)
            shown = [max(1, int(factor * side)) for side in (height, width)]
            picture = F.interpolate(picture[None], shown, mode="bilinear", antialias=True)[0]
        return Target(
            value=torch.cat([features, flow], 1), label=f"{name}{moved}"[:76], picture=picture
        )
