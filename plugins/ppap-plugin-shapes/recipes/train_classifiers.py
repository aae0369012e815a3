"""The classifiers of the embedded world.

`guide` is the off-the-shelf network: a ResNet-18 of reduced width (He et al. 2016), trained on
clean renders and nothing else, so that it has never seen noise. `judge` measures results and never
guides: a ConvNeXt (Liu et al. 2022) of another seed and other data, trained on renders that are
shifted, softened and lightly grained, so that it forgives what generated pictures have and renders
have not. Its last features are 64 wide, few enough to estimate a covariance from 2,048 pictures.

    python train_classifiers.py guide --state ~/ppap-train
"""

from __future__ import annotations

from pathlib import Path

import attrs
import click
import timm
import torch
import torch.nn.functional as F
from publish import publish
from torch import Tensor, nn
from training import Plan, grained, halved, mirrored, rendered, to_images, train

from ppap_plugin_shapes.world import CLASS_NAMES, COLOURS

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
TEST_SEED, TEST_COUNT = 900, 10_000


@attrs.frozen
class Recipe:
    name: str
    summary: str
    model: str
    model_args: dict[str, object]
    data_seed: int
    data_count: int
    plan: Plan
    grain: bool


RECIPES = {
    "guide": Recipe(
        "shapes-resnet18",
        "A narrow ResNet-18 that has seen clean renders only",
        "resnet18",
        {"channels": (48, 96, 160, 256), "stem_type": "deep", "stem_width": 24},
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
        grain=False,
    ),
    "judge": Recipe(
        "shapes-judge",
        "A ConvNeXt that measures results and never guides",
        "convnext_atto",
        {"patch_size": 2, "depths": (2, 2, 4, 2), "dims": (32, 64, 96, 64)},
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
    return timm.create_model(recipe.model, num_classes=len(CLASS_NAMES), **recipe.model_args)


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to two pixels."""
    dy, dx = torch.randint(-2, 3, (2, len(x)), generator=generator)
    rows = (torch.arange(x.shape[2]) + dy[:, None]).clamp(0, x.shape[2] - 1)
    columns = (torch.arange(x.shape[3]) + dx[:, None]).clamp(0, x.shape[3] - 1)
    moved = x[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


@torch.no_grad()
def predictions(network: nn.Module, images: Tensor) -> Tensor:
    """(N,), the predicted classes of uint8 images."""
    network.eval()
    return torch.cat([network(to_images(block)).argmax(1) for block in images.split(500)])


@click.command()
@click.argument("which", type=click.Choice(sorted(RECIPES)))
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="Folder that survives a kill."
)
def main(which: str, state: Path) -> None:
    recipe = RECIPES[which]
    images, labels = rendered(state, recipe.data_seed, recipe.data_count)
    torch.manual_seed(recipe.plan.seed)
    network = make(recipe).to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (recipe.plan.batch,), generator=generator)
        (x,), y = mirrored(generator, to_images(images[chosen])), labels[chosen]
        if recipe.grain:
            x = grained(shifted(x, generator), generator)
        logits = network(x.contiguous(memory_format=torch.channels_last))
        accuracy = (logits.argmax(1) == y).float().mean().item()
        return F.cross_entropy(logits, y, label_smoothing=0.05 if recipe.grain else 0.0), {
            "accuracy": accuracy
        }

    average, seconds = train(network, recipe.plan, state / which, loss)
    network.load_state_dict(halved(average))
    test_images, test_labels = rendered(state, TEST_SEED, TEST_COUNT)
    guessed = predictions(network, test_images)
    colours = len(COLOURS)
    metrics = {
        "fresh_renders": TEST_COUNT,
        "accuracy": (guessed == test_labels).float().mean().item(),
        "shape_accuracy": (guessed // colours == test_labels // colours).float().mean().item(),
        "colour_accuracy": (guessed % colours == test_labels % colours).float().mean().item(),
    }
    architecture = {
        "model": recipe.model,
        "model_args": recipe.model_args,
        "class_names": CLASS_NAMES,
        "input_size": 32,
        "mean": MEAN,
        "std": STD,
    }
    training = {
        "recipe": f"train_classifiers.py {which}",
        **attrs.asdict(recipe.plan),
        "seconds": round(seconds),
        "data_seed": recipe.data_seed,
        "data_count": recipe.data_count,
        "test_seed": TEST_SEED,
    }
    path = publish(
        recipe.name,
        "classifier",
        "guider",
        recipe.summary,
        average,
        architecture,
        training,
        metrics,
        which == "guide",
    )
    click.echo(f"{path}: {metrics}")


if __name__ == "__main__":
    main()
