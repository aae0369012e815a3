"""The classifiers of the embedded world.

`guide` is the off-the-shelf network: a ResNet-18 of reduced width (He et al. 2016), trained on
clean renders and nothing else, so that it has never seen noise. `judge` measures results and never
guides: a ConvNeXt (Liu et al. 2022) of another seed and other data, trained on renders that are
shifted, softened and lightly grained, so that it forgives what generated pictures have and renders
have not. Its last features are 64 wide, few enough to estimate a covariance from 2,048 pictures.

    python train_classifiers.py guide --state ~/ppap-train
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from recipe import Recipe, command
from torch import Tensor, nn
from training import Plan, grained, mirrored, to_images

from ppap_plugin_shapes.world import CLASS_NAMES, COLOURS


def architecture(
    model: str, class_names: Sequence[str] = CLASS_NAMES, **arguments: object
) -> dict[str, Any]:
    """What the checkpoint of a timm model states."""
    return {
        "model": model,
        "model_args": arguments,
        "class_names": class_names,
        "input_size": 32,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }


RECIPES = {
    "guide": Recipe(
        "shapes-resnet18",
        "A narrow ResNet-18 that has seen clean renders only",
        architecture("resnet18", channels=(48, 96, 160, 256), stem_type="deep", stem_width=24),
        data_seed=2,
        data_count=20_000,
        plan=Plan(
            steps=3000,
            decay=2000,
            batch=64,
            learning_rate=2e-3,
            seed=21,
            weight_decay=0.05,
            ema=0.99,
        ),
    ),
    "judge": Recipe(
        "shapes-judge",
        "A ConvNeXt that measures results and never guides",
        architecture("convnext_atto", patch_size=2, depths=(2, 2, 4, 2), dims=(32, 64, 96, 64)),
        data_seed=3,
        data_count=20_000,
        plan=Plan(
            steps=4000,
            decay=3000,
            batch=64,
            learning_rate=2e-3,
            seed=31,
            weight_decay=0.05,
            ema=0.99,
        ),
        grain=True,
    ),
}


def make(recipe: Recipe) -> nn.Module:
    arguments = recipe.config["model_args"]
    network = timm.create_model(recipe.config["model"], num_classes=len(CLASS_NAMES), **arguments)
    return network.to(memory_format=torch.channels_last)


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to two pixels."""
    dy, dx = torch.randint(-2, 3, (2, len(x)), generator=generator)
    rows = (torch.arange(x.shape[2]) + dy[:, None]).clamp(0, x.shape[2] - 1)
    columns = (torch.arange(x.shape[3]) + dx[:, None]).clamp(0, x.shape[3] - 1)
    moved = x[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def loss(
    recipe: Recipe, network: nn.Module, x: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    (x,) = mirrored(generator, x)
    if recipe.grain:
        x = grained(shifted(x, generator), generator)
    logits = network(x.contiguous(memory_format=torch.channels_last))
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    smoothing = 0.05 if recipe.grain else 0.0
    return F.cross_entropy(logits, labels, label_smoothing=smoothing), {"accuracy": accuracy}


def measure(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The shares of images of which class, shape and colour are right."""
    guessed = torch.cat([network(to_images(block)).argmax(1) for block in images.split(500)])
    colours = len(COLOURS)
    return {
        "accuracy": (guessed == labels).float().mean().item(),
        "shape_accuracy": (guessed // colours == labels // colours).float().mean().item(),
        "colour_accuracy": (guessed % colours == labels % colours).float().mean().item(),
    }


main = command(
    __file__,
    RECIPES,
    component="classifier",
    truth="labels",
    make=make,
    loss=loss,
    measure=measure,
    folder="",
    test_count=10_000,
)

if __name__ == "__main__":
    main()
