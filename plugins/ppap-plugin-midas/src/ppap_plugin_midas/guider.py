"""Any depth network of transformers as a guide.

Networks say different things: MiDaS and its kin a disparity, known up to scale and shift, others
a distance in metres. Here all of them say disparity, larger is nearer: distances z become 1 / z.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ppap_framework.author import (
    Checkpoint,
    GuidanceModel,
    ImageInput,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
)
from ppap_plugin_midas.colours import colour_map
from ppap_plugin_midas.options import DepthOptions, Meaning
from ppap_transformers import find_model, load_network, make_input

__all__ = ["DepthGuide", "make_depth"]

_NEAREST = 1e-2  # metres: what is nearer counts as that, since 1 / z has no end
_LARGEST = 512  # side of a reference picture for a network without a size of its own

# What the numbers of each type of network are. Depth Anything has weights of either kind and says
# so in its config.
_PREDICTS: dict[str, Meaning] = {
    "dpt": "disparity",
    "depth_pro": "disparity",
    "glpn": "depth",
    "zoedepth": "depth",
}
_BY_CONFIG: dict[str, Meaning] = {"relative": "disparity", "metric": "depth"}

# The deepest block of the decoder has nothing to add to, and some published files leave out the
# convolutions that it would have for that.
_UNUSED = r"neck\.fusion_stage\.layers\.0\.residual_layer1\."


def make_depth(options: DepthOptions, checkpoint: Checkpoint | None) -> DepthGuide:
    """The factory of the guider `depth`.

    Raises:
        UsageError: If nothing says which model it is, or what its numbers are.
        AssetError: If the files are missing, damaged, do not fit, or cannot be had.
    """
    if (options.model or "").startswith("torchvision/"):
        raise UsageError(
            f"model {options.model!r}: torchvision has no depth networks",
            hint="give a folder that transformers saved, or owner/name of the hub",
        )
    files = find_model(options.model, checkpoint)
    network: Any = load_network(files, "depth-estimation", unused=_UNUSED)
    config = network.config
    predicts = options.predicts or _meaning(config)
    if predicts is None:
        raise UsageError(
            f"{files.name!r} is a {config.model_type}, whose numbers may be disparity or depth",
            hint="say which with --guider-option predicts=disparity, or predicts=depth",
        )
    patch = getattr(getattr(config, "backbone_config", None) or config, "patch_size", None)
    feed = make_input(files, multiple=patch if isinstance(patch, int) else 1, size=options.size)
    return DepthGuide(network, feed, predicts=predicts, target_map=options.target_map)


def _meaning(config: Any) -> Meaning | None:
    stated = getattr(config, "depth_estimation_type", "")  # only some configs have it
    return _BY_CONFIG.get(stated) or _PREDICTS.get(config.model_type)


@final
class DepthGuide(GuidanceModel):
    """A frozen depth network, with the resize and normalisation that it was trained with.

    Args:
        network: From `pixel_values` (B, 3, h, w) to an output with `predicted_depth`, (B, h', w').
        feed: What it wants made of images.
        predicts: What its numbers are.
        target_map: What the numbers of a map given as target are.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: ImageInput,
        *,
        predicts: Meaning = "disparity",
        target_map: Meaning = "disparity",
    ) -> None:
        super().__init__()
        self.network = network
        self.feed = feed
        self._predicts = predicts
        self._target_map = target_map
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Disparity (B, h, w) of images (B, 3, H, W), larger is nearer; the noise level is ignored.

        h and w are what the network makes of its input: often that size, or twice it.
        """
        predicted: Tensor = self.network(pixel_values=self.feed(images)).predicted_depth
        if self._predicts == "disparity":
            return predicted
        return 1.0 / predicted.clamp_min(_NEAREST)

    def target(self, given: TargetInput) -> Target:
        """A map to aim at, (1, h, w) or (B, h, w), larger is nearer, NaN where it is not known.

        Args:
            given: A picture, whose depth the network estimates; or a map, as 16-bit picture or as
                array (H, W), or (B, H, W) with one for each image. What is not square loses its
                longer sides.

        Raises:
            UsageError: For words, for an array of another shape, and for a map without content.
        """
        if given.image is not None and given.image.mode != "I;16":
            return self._of_picture(given.image, given.source)
        if given.image is not None:
            return self._of_map(torch.from_numpy(np.asarray(given.image).astype(np.float32)), given)
        shape = () if given.array is None else tuple(given.array.shape)
        if len(shape) == 3 and shape[2] == 3:
            raise UsageError(
                f"a depth network cannot aim at an array of shape {shape}: (H, W, 3) is a colour "
                "array, no map",
                hint="save it as a picture to copy its depth, or give a map (H, W)",
            )
        if given.array is not None and given.array.ndim in (2, 3):
            return self._of_map(given.array.float(), given)
        what = f"the words {given.text!r}" if given.array is None else f"an array of shape {shape}"
        raise UsageError(
            f"a depth network cannot aim at {what}",
            hint="give a picture whose depth to copy, or a depth map as 16-bit PNG or NPY",
        )

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Each map in colours, from dark and far to light and near: (B, 3, h, w)."""
        return colour_map(prediction)

    def _of_picture(self, image: Image.Image, source: str) -> Target:
        side = min(image.size)
        corner = ((image.width - side) // 2, (image.height - side) // 2)
        image = image.convert("RGB").crop((*corner, corner[0] + side, corner[1] + side))
        most = max(_LARGEST, self.feed.size or 0)
        if side > most:
            image = image.resize((most, most), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, side, side), uint8
        picture = pixels.float() / 127.5 - 1
        device = next(self.network.parameters()).device
        with torch.no_grad():
            value = self(picture[None].to(device))
        shown = torch.cat([picture, _enlarged(colour_map(value)[0], picture.shape[-1])], dim=2)
        return Target(value=value, label=f"the depth of {_last(source)}", picture=shown)

    def _of_map(self, numbers: Tensor, given: TargetInput) -> Target:
        maps = numbers if numbers.ndim == 3 else numbers[None]
        side = min(maps.shape[1:])
        top, left = ((extent - side) // 2 for extent in maps.shape[1:])
        maps = maps[:, top : top + side, left : left + side]
        if self._target_map == "depth":
            if bool((maps < 0).any()):
                raise UsageError(
                    f"{given.source!r} has negative depths",
                    hint="leave out --guider-option target_map=depth if larger is nearer in it",
                )
            maps = torch.where(maps > 0, 1.0 / maps, torch.nan)
        if bool((maps.isfinite().sum((1, 2)) == 0).any()):
            raise UsageError(
                f"no depth is known anywhere in {given.source!r}",
                hint="give a map with numbers where depth is known",
            )
        nearer = "" if self._target_map == "disparity" else ", of distances"
        label = f"the depth map {_last(given.source)}{nearer}"
        return Target(value=maps, label=label, picture=colour_map(maps)[0])


def _enlarged(picture: Tensor, side: int) -> Tensor:
    """(3, h, w) at side x side, each pixel repeated or left out."""
    return nn.functional.interpolate(picture[None], (side, side), mode="nearest-exact")[0]


def _last(source: str) -> str:
    return source.replace("\\", "/").rpartition("/")[2] or "picture"
