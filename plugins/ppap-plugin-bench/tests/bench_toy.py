"""Two experiments on the toy plugin, one of classes and one of scenes, whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppap_framework.checkpoints import save_checkpoint

NAMES = ("dark red", "light red", "green", "blue")
WEIGHT = torch.tensor([[0.5, -0.5, -0.5], [1.0, 0.1, 0.0], [-0.5, 1.0, -0.4], [-0.5, -0.5, 1]])
"""The judge's, of mean colors."""

_COLORS = np.array([[0.1, -0.1, -0.1], [0.9, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])

_TOY = """
backend = "toy"
judge = "colour:judge.safetensors"
sampler = "ddim"
steps = 5
"""

CLASSES = f"""{_TOY}
title = "A toy"
text = "Nothing to learn from."
reference = "reference.npz"
num = 64
block = 16
baselines = ["unguided"]
timing = {{num = 2, rounds = 3}}
[[rows]]
name = "unguided"
title = "No guide"
[[rows]]
name = "guided"
title = "A guide"
text = "It sees colours."
guider = "colour"
scales = ["raw:0.001", "raw:100", "raw:0.002"]
default = "raw:100"
[[rows]]
name = "renders"
images = "others.npz"
"""

SCENES = f"""{_TOY}
title = "Scenes"
reference = "scene-reference.npz"
fidelity = ["grey.distance", "hit"]
num = 16
batch = 8
baselines = ["unguided"]
scenes = {{pictures = "scenes.npz", num = 8}}
timing = {{num = 2, rounds = 1}}
[[judges]]
name = "grey"
guider = "grey:grey-1"
loss = "toy-distance"
truth = "brightness"
lower = ["distance"]
higher = ["likeness"]
[[rows]]
name = "renders"
images = "other-scenes.npz"
[[rows]]
name = "unguided"
[[rows]]
name = "guided"
title = "A guide"
guider = "grey"
model = "own"
scales = ["raw:0.1", "raw:300"]
default = "raw:300"
[[rows]]
name = "together"
scales = ["raw:0.1", "raw:3"]
default = "raw:3"
guides = [
    {{guider = "grey", model = "own", scale = 100.0}},
    {{guider = "colour", scale = 20.0, aim = "class"}},
]
"""

EXPERTS = f"""{_TOY}
reference = "reference.npz"
num = 16
batch = 8
timing = {{num = 2, rounds = 1}}
[[rows]]
name = "naive"
guider = "colour"
scales = [1, 8]
[[rows]]
name = "experts"
guider = "colour"
experts = "kept/mine.experts.safetensors"
scales = [1, 8]
[[rows]]
name = "other"
guider = "colour"
experts = "kept/mine.experts.safetensors"
sampler = "ddpm"
steps = 4
scales = ["raw:7.5"]
"""


def write_experiments(folder: Path) -> Path:
    """Write all three, and everything that they name but experts."""
    save_checkpoint(folder / "judge.safetensors", {"weight": WEIGHT}, {})
    write_pictures(folder / "reference.npz", 1)
    write_pictures(folder / "others.npz", 2)
    scenes = (("scene-reference", 1, 40), ("other-scenes", 2, 20), ("scenes", 3, 20))
    for name, seed, number in scenes:
        write_scenes(folder / f"{name}.npz", seed, number)
    for name, text in (("toy", CLASSES), ("scenes", SCENES), ("experts", EXPERTS)):
        text = text.replace("colour:judge", f"colour:{folder / 'judge'}")
        (folder / f"{name}.toml").write_text(text)
    return folder


def write_pictures(path: Path, seed: int, number: int = 200) -> Path:
    """Noisy squares of the toy's four colors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, number)
    levels = _COLORS[labels][:, :, None, None] + 0.2 * rng.standard_normal((number, 3, 8, 8))
    images = (127.5 * (levels + 1.0)).clip(0, 255).astype(np.uint8)
    np.savez(path, images=images, labels=labels, class_names=np.array(NAMES))
    return path


def write_scenes(path: Path, seed: int, number: int) -> Path:
    """Stripes of light and dark in one of four tints, and how bright they are."""
    rng, weight = np.random.default_rng(seed), WEIGHT.numpy()
    brightness = np.repeat(rng.uniform(-0.6, 0.6, (number, 8, 1)), 8, axis=2).astype(np.float32)
    labels = rng.integers(0, 4, number)
    tints = 0.2 * (weight[labels] - weight[labels].mean(1, keepdims=True))
    levels = brightness[:, None] + tints[:, :, None, None]
    images = (127.5 * (levels + 1.0)).round().clip(0, 255).astype(np.uint8)
    np.savez(
        path, images=images, labels=labels, class_names=np.array(NAMES), brightness=brightness,
        words=np.array(["a"] * number), distance=1.0 / (brightness + 2.0),
    )  # fmt: skip
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def row(results: Path, name: str) -> Any:
    """What was measured of a row."""
    return read(results / "rows" / f"{name}.json")


def kept_pixels(images: Path, *scales: str) -> NDArray[np.uint8]:
    """Images that were kept, drawn by guides of these scales."""
    for path in (images / "batches").glob("*/settings.json"):
        found = read(path)
        guides = [guide["scale"] for guide in found["guides"]]
        if guides == list(scales):
            batches = sorted(path.parent.glob("*.npz"))
            return np.concatenate([np.load(batch)["images"] for batch in batches])
    raise AssertionError(f"no images of scales {scales}")
