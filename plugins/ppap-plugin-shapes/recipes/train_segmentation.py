"""The segmentation networks of the embedded world.

`guide` is the off-the-shelf network: a small SegFormer (Xie et al. 2021, arXiv 2105.15203), trained
on clean renders and nothing else, so that it has never seen noise. Its first patches overlap at a
stride of 2 instead of 4: at 32 pixels the map would be too coarse otherwise. `judge` measures
results and never guides: a UPerNet (Xiao et al. 2018, arXiv 1807.10221) on a ConvNeXt, of another
seed and other data, trained on renders that are softened and lightly grained, so that it forgives
what generated pictures have and renders have not.

    python train_segmentation.py guide --state ~/ppap-train
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click
import torch
import torch.nn.functional as F
from publish import publish_folder
from torch import Tensor, nn
from training import Plan, grained, halved, mirrored, rendered, to_images, train
from transformers import CONFIG_MAPPING, AutoModelForSemanticSegmentation

from ppap_plugin_shapes.world import SEGMENTATION_NAMES

TEST_SEED, TEST_COUNT = 900, 2000
PREPROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_reduce_labels": False,
}
LABELS = {
    "id2label": dict(enumerate(SEGMENTATION_NAMES)),
    "label2id": {name: index for index, name in enumerate(SEGMENTATION_NAMES)},
}


@attrs.frozen
class Recipe:
    name: str
    summary: str
    config: dict[str, Any]
    data_seed: int
    data_count: int
    plan: Plan
    grain: bool


RECIPES = {
    "guide": Recipe(
        "shapes-segformer",
        "A small SegFormer that has seen clean renders only",
        {
            "model_type": "segformer",
            "patch_sizes": [3, 3, 3, 3],
            "strides": [2, 2, 2, 1],
            "sr_ratios": [4, 2, 1, 1],
            "hidden_sizes": [32, 64, 96, 128],
            "depths": [2, 2, 2, 2],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 96,
            "drop_path_rate": 0.0,
            "classifier_dropout_prob": 0.0,
        },
        data_seed=6,
        data_count=8000,
        plan=Plan(
            steps=2000,
            decay=1400,
            warmup=100,
            batch=32,
            learning_rate=1e-3,
            seed=61,
            weight_decay=0.05,
            ema=0.99,
            save_every=100,
        ),
        grain=False,
    ),
    "judge": Recipe(
        "shapes-segmentation-judge",
        "A UPerNet on a ConvNeXt that measures results and never guides",
        {
            "model_type": "upernet",
            "backbone_config": {
                "model_type": "convnext",
                "patch_size": 2,
                "hidden_sizes": [32, 64, 96, 128],
                "depths": [2, 2, 2, 2],
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 48,
            "pool_scales": [1, 2, 4],
            "use_auxiliary_head": False,
        },
        data_seed=7,
        data_count=8000,
        plan=Plan(
            steps=3000,
            decay=2000,
            warmup=100,
            batch=32,
            learning_rate=1e-3,
            seed=71,
            weight_decay=0.05,
            ema=0.99,
            save_every=100,
        ),
        grain=True,
    ),
}


def make(recipe: Recipe) -> nn.Module:
    values = dict(recipe.config) | LABELS
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    return AutoModelForSemanticSegmentation.from_config(config)


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """(B, K, 32, 32)."""
    return F.interpolate(network(x).logits, x.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def measure(network: nn.Module, images: Tensor, classes: Tensor) -> dict[str, object]:
    """Intersection over union of each class over all pixels, its mean, and pixel accuracy."""
    network.eval()
    guessed = torch.cat([logits_of(network, to_images(b)).argmax(1) for b in images.split(250)])
    number = len(SEGMENTATION_NAMES)
    confusion = torch.bincount((classes * number + guessed).flatten(), minlength=number**2)
    confusion = confusion.reshape(number, number).double()
    hits = confusion.diagonal()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return {
        "fresh_renders": len(images),
        "pixel_accuracy": (hits.sum() / confusion.sum()).item(),
        "mean_iou": iou.mean().item(),
        **{
            f"iou_{name}": value
            for name, value in zip(SEGMENTATION_NAMES, iou.tolist(), strict=True)
        },
    }


@click.command()
@click.argument("which", type=click.Choice(sorted(RECIPES)))
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="Folder that survives a kill."
)
def main(which: str, state: Path) -> None:
    recipe = RECIPES[which]
    images, classes = rendered(state, recipe.data_seed, recipe.data_count, truth="segmentation")
    torch.manual_seed(recipe.plan.seed)
    network = make(recipe)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (recipe.plan.batch,), generator=generator)
        x, y = mirrored(generator, to_images(images[chosen]), classes[chosen])
        logits = logits_of(network, grained(x, generator) if recipe.grain else x)
        accuracy = (logits.argmax(1) == y).float().mean().item()
        return F.cross_entropy(logits, y), {"accuracy": accuracy}

    average, seconds = train(network, recipe.plan, state / f"segmentation-{which}", loss)
    network.load_state_dict(halved(average))
    metrics = measure(network, *rendered(state, TEST_SEED, TEST_COUNT, truth="segmentation"))
    training = {
        "recipe": f"train_segmentation.py {which}",
        **attrs.asdict(recipe.plan),
        "seconds": round(seconds),
        "data_seed": recipe.data_seed,
        "data_count": recipe.data_count,
        "test_seed": TEST_SEED,
    }
    path = publish_folder(
        recipe.name,
        "segmentation",
        recipe.summary,
        network,
        PREPROCESSOR,
        training,
        metrics,
        which == "guide",
    )
    click.echo(f"{path}: {metrics}")


if __name__ == "__main__":
    main()
