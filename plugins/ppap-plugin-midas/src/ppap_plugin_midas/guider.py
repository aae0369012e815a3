"""Any depth network of transformers, and MiDaS_small, as a guide.

Networks predict different quantities: MiDaS and similar ones a disparity up to scale and shift,
others a distance in metres. Here all outputs are disparities, larger is nearer: distances z become
1 / z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ppap_framework.author import (
    Checkpoint,
    ImageInput,
    NoiseLevel,
    Preprocessing,
    PreprocessingGuide,
    Target,
    TargetInput,
    UsageError,
)
from ppap_plugin_midas.colours import colour_map
from ppap_plugin_midas.midas_small import MODELS, load_midas_small
from ppap_plugin_midas.options import DepthOptions, Meaning
from ppap_transformers import central, find_model, load_network, make_input

__all__ = ["DepthGuide", "make_depth"]

_NEAREST = 1e-2  # lower bound of distances, in metres, since 1 / z is unbounded
_LARGEST = 512  # side of target pictures for networks without a fixed input size

# Output quantity by model type. Depth Anything has weights of both kinds; its config states which.
_PREDICTS: dict[str, Meaning] = {
    "dpt": "disparity",
    "depth_pro": "disparity",
    "glpn": "depth",
    "zoedepth": "depth",
}
_BY_CONFIG: dict[str, Meaning] = {"relative": "disparity", "metric": "depth"}

# The deepest decoder block never uses these convolutions, and some published files omit them.
_UNUSED = r"neck\.fusion_stage\.layers\.0\.residual_layer1\."


def make_depth(options: DepthOptions, checkpoint: Checkpoint | None) -> DepthGuide:
    """Factory of the guider `depth`.

    Raises:
        UsageError: If the model or its output quantity is not specified.
        AssetError: If the files are missing, damaged, do not fit, or are unavailable.
    """
    if (options.model or "").startswith("torchvision/"):
        raise UsageError(
            f"model {options.model!r}: torchvision has no depth networks",
            hint="give a folder that transformers saved, or owner/name of the hub",
        )
    if options.model in MODELS:
        small, shown = load_midas_small(checkpoint, options.size)
        meaning = options.predicts or "disparity"
        return DepthGuide(small, shown, predicts=meaning, target_map=options.target_map)
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
    stated = files.architecture["preprocessor"].get("do_pad", True)
    padded = config.model_type == "zoedepth" and bool(stated)
    return DepthGuide(
        network,
        feed,
        predicts=predicts,
        target_map=options.target_map,
        padded=padded,
    )


def _meaning(config: Any) -> Meaning | None:
    stated = getattr(config, "depth_estimation_type", "")  # only in some configs
    return _BY_CONFIG.get(stated) or _PREDICTS.get(config.model_type)


@final
class DepthGuide(PreprocessingGuide):
    """A frozen depth network with its preprocessing.

    Args:
        network: Maps `pixel_values` (B, 3, h, w) to an output with `predicted_depth` (B, h', w').
        feed: Preprocessing: resize and normalisation.
        predicts: Output quantity of the network.
        target_map: Quantity of depth maps given as targets.
        padded: Whether images get the reflected border of ZoeDepth, which is cut off the output.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: ImageInput,
        *,
        predicts: Meaning = "disparity",
        target_map: Meaning = "disparity",
        padded: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.feed = feed
        self._predicts = predicts
        self._target_map = target_map
        self._padded = padded
        self.eval().requires_grad_(False)

    def preprocessed(self, preprocessing: Preprocessing) -> DepthGuide:
        """See `PreprocessingGuide.preprocessed`."""
        feed = ImageInput(**attrs.asdict(preprocessing)).to(next(self.feed.buffers()))
        return DepthGuide(self.network, feed, predicts=self._predicts, target_map=self._target_map)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Disparity (B, h, w) of images (B, 3, H, W), larger is nearer; the noise level is ignored.

        h and w are those of the network's output, often once or twice its input size.
        """
        predicted: Tensor = self.network(pixel_values=self.feed(images)).predicted_depth
        predicted = central(predicted, 1 / self.feed.kept)
        if self._padded:
            predicted = _without_border(predicted, images.shape[-2:])
        if self._predicts == "disparity":
            return predicted
        return 1.0 / predicted.clamp_min(_NEAREST)

    def target(self, given: TargetInput) -> Target:
        """Disparity of the target, (1, h, w) or (B, h, w), NaN where unknown.

        Args:
            given: A picture, whose depth the network estimates; or a depth map as 16-bit picture or
                array (H, W), (B, H, W) or (B, 1, H, W). Inputs that are not square are
                center-cropped.

        Raises:
            UsageError: For text, an array of another shape, or a map without known depths.
        """
        if given.image is not None and given.image.mode != "I;16":
            return self._of_picture(given.image, given.source)
        if given.image is not None:
            return self._of_map(torch.from_numpy(np.asarray(given.image).astype(np.float32)), given)
        shape = () if given.array is None else tuple(given.array.shape)
        if len(shape) == 3 and 3 in (shape[0], shape[2]):
            raise UsageError(
                f"a depth network cannot aim at an array of shape {shape}: it is a colour array",
                hint="save it as a picture to copy its depth, or give a map (H, W), or three maps "
                "(3, 1, H, W)",
            )
        if given.array is not None and (len(shape) in (2, 3) or shape[1:2] == (1,)):
            return self._of_map(given.array.float().reshape(-1, *shape[-2:]), given)
        words = (given.text or "")[:60]
        what = f"the words {words!r}" if given.array is None else f"an array of shape {shape}"
        raise UsageError(
            f"a depth network cannot aim at {what}",
            hint="give a picture whose depth to copy, or a depth map as 16-bit PNG or NPY",
        )

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Maps in colours, dark is far and light is near: (B, 3, h, w)."""
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
        maps = central(maps[:, top : top + side, left : left + side], self.feed.kept)
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


def _without_border(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, h, w) without the border of 3 sqrt(side / 2) pixels that ZoeDepth's processor adds."""
    for axis, side in zip((1, 2), sides, strict=True):
        border = int(3 * math.sqrt(side / 2))
        cut = round(maps.shape[axis] * border / (side + 2 * border))
        maps = maps.narrow(axis, cut, maps.shape[axis] - 2 * cut)
    return maps


def _enlarged(picture: Tensor, side: int) -> Tensor:
    """Resize (3, h, w) to side x side by nearest neighbour."""
    return nn.functional.interpolate(picture[None], (side, side), mode="nearest-exact")[0]


def _last(source: str) -> str:
    return source.replace("\\", "/").rpartition("/")[2] or "picture"
