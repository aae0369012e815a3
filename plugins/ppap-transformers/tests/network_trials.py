"""Tries guides on tiny networks of random weights, from a file to guided images.

The network is saved as a file, learns to read noise on images that the embedded ADM draws, and
guides it with its experts; afterwards it must be what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import timm
import tiny_detectors
import tiny_towers
import torch
from PIL import Image
from tiny_networks import CLASSIFIERS, MEAN, NAMES, SIZE, STD, TASKS, named, saved
from torch import Tensor
from transfer_toy import anatomy

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.data import SyntheticData
from ppap_framework.experts import load_bundle, read_bundle_info
from ppap_framework.learn import Recipe, load_teacher, transfer
from ppap_framework.run import GuideRequest, LoadedBackend

DETECTORS = (*tiny_detectors.CONFIGS, *tiny_detectors.TORCHVISION)
TOWERS = tuple(tiny_towers.TOWERS)
FEATURES = ("likeness", "style", "structure")
ALL = {**TASKS, "detection": DETECTORS, "text and pictures": TOWERS, "features": FEATURES}
"""Every kind of network, by what it does."""

GUIDERS = {
    "classification": "classifier",
    "depth": "depth",
    "segmentation": "segmentation",
    "detection": "detection",
    "text and pictures": "clip-text",
}
SCALES = {
    "classification": 2,
    "depth": 200,
    "segmentation": 2,
    "detection": 2,
    "text and pictures": 200,
    "features": 200,
}
SORTED = ("rt_detr", "rt_detr_v2", "d_fine", "lw_detr", "rf_detr")
"""Detectors that sort their queries by score."""

STEPS, IMAGES = 10, 2
RECIPE = Recipe(iterations=10, batch=8, learning_rate=0.001, held_out=0.5, validate_every=10)
TINY = (("lora", {"rank": 2, "alpha": 2.0}), ("bias", {}))


def kinds() -> Iterator[tuple[str, str]]:
    """All of them, with what they do."""
    for task, names in ALL.items():
        for kind in names:
            yield kind, task


@attrs.frozen(kw_only=True, eq=False)
class Stand:
    """What all networks are tried on.

    Attributes:
        backend: The embedded ADM.
        data: Images that it drew.
        unguided: (IMAGES, 3, H, W), what it draws without a guide from the noise that guides see.
    """

    backend: LoadedBackend
    data: SyntheticData
    unguided: Tensor


def save_tiny(kind: str, task: str, folder: Path) -> dict[str, str]:
    """Save a tiny network, and say how `ppap_framework.guide` is told of it."""
    if task == "detection":
        tiny_detectors.saved(kind, folder)
    elif task == "text and pictures":
        tiny_towers.saved(kind, folder)
    elif task == "features":
        model, arguments = CLASSIFIERS["vit" if kind == "structure" else "resnet"]
        stated = {"model": model, "model_args": arguments, "input_size": SIZE}
        stated |= {"class_names": list(NAMES), "mean": MEAN, "std": STD}
        torch.manual_seed(0)
        network = timm.create_model(model, num_classes=len(NAMES), **arguments)
        save_checkpoint(folder / "weights.safetensors", network.state_dict(), stated)
    else:
        saved(kind, folder)
    return named(folder)


def make_stand(folder: Path) -> Stand:
    """Load the backend and draw."""
    backend = ppap.backend("adm")
    data = ppap.synthesize(backend, num=16, steps=STEPS, seed=0, out=folder, device="cpu")
    drawn = ppap.sample(backend, [], num=IMAGES, steps=STEPS, seed=0, device="cpu")
    return Stand(backend=backend, data=data, unguided=drawn.images)


def try_out(kind: str, task: str, stand: Stand, folder: Path) -> dict[str, Any]:
    """From a file to guided images.

    Raises:
        AssertionError: Where anything is not finite, or a network is not left as it was.
    """
    network = folder / "network"
    network.mkdir()
    guider = GUIDERS.get(task, kind)
    told: dict[str, Any] = save_tiny(kind, task, network)
    if kind in SORTED:
        told["loss_options"] = {"match_experts": True}
    learner = load_teacher(GuideRequest(source=guider, **told))
    learner.model(stand.unguided)  # at the first call transformers adds hooks of its own
    before = anatomy(learner.model.network)
    bundle = transfer(
        stand.backend,
        learner,
        stand.data,
        out=folder / "experts",
        num_experts=1,
        adapters=TINY,
        recipe=RECIPE,
        keep=False,
        device="cpu",
        calibrate=False,
    )
    assert anatomy(learner.model.network) == before
    experts = load_bundle(bundle.path, learner.model, stand.backend.inner)
    experts.activate(0)
    assert anatomy(learner.model.network) != before
    experts.detach()
    assert anatomy(learner.model.network) == before

    picture = Image.fromarray(stand.data.images([0])[0].permute(1, 2, 0).numpy())
    words = {"classification": 1, "segmentation": "cube", "text and pictures": "a red cube"}
    words["detection"] = "red cube@0.2,0.2,0.8,0.8"
    target = words.get(task, picture)
    guide = ppap.guide(guider, **told, target=target, scale=SCALES[task], experts=str(bundle.path))
    with torch.no_grad():
        unguided = guide.loss.energy(guide.model(stand.unguided), guide.target.value)
    before = anatomy(guide.model.network)
    drawn = ppap.sample(stand.backend, [guide], num=IMAGES, steps=STEPS, seed=0, device="cpu")
    assert anatomy(guide.model.network) == before
    assert drawn.images.isfinite().all()
    (statistics,) = drawn.stats.guidance.guides
    assert statistics.skipped == 0
    (seen,) = drawn.seen.values()
    scores = read_bundle_info(bundle.path).metrics["experts"]
    return {
        "parameters": sum(p.numel() for p in learner.model.network.parameters()),
        "loss": {key: _mean([score[key] for score in scores]) for key in ("untouched", "held_out")},
        "energy": {"unguided": _mean(unguided), "guided": _mean(seen.figures["energy"])},
        "moved": 127.5 * _mean((drawn.images - stand.unguided).abs()),
    }


def _mean(values: Any) -> float:
    values = torch.as_tensor(values, dtype=torch.float64)
    assert values.isfinite().all()
    return float(values.mean())
