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

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import click
import numpy as np
import torch
import torch.nn.functional as F
from publish import publish_folder
from torch import Tensor, nn
from training import RENDER_BLOCK, Plan, to_images, train
from transformers import CONFIG_MAPPING, AutoModelForSemanticSegmentation

from ppap_plugin_shapes.world import SEGMENTATION_NAMES, render

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


def _render_block(seed: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    scenes = render(seed, range(start, start + RENDER_BLOCK), 32)
    return scenes.images, scenes.segmentation


def segmented(folder: Path, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` scenes of a seed: images (N, 3, 32, 32) uint8 and classes (N, 32, 32),
    rendered once and kept.
    """
    path = folder / f"segmented-{seed}-{count}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, RENDER_BLOCK)
        with ProcessPoolExecutor(2) as pool:
            blocks = list(pool.map(_render_block, [seed] * len(starts), starts))
        images = np.concatenate([images for images, _ in blocks])[:count].transpose(0, 3, 1, 2)
        classes = np.concatenate([classes for _, classes in blocks])[:count]
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=images, classes=classes)
        partial.replace(path)
    with np.load(path) as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["classes"]).long()


def grained(x: Tensor, generator: torch.Generator) -> Tensor:
    """Soften half of the images, and add faint noise to all."""
    batch = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    weight = torch.rand(batch, 1, 1, 1, generator=generator) * (
        torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    )
    sigma = 0.08 * torch.rand(batch, 1, 1, 1, generator=generator)
    return torch.lerp(x, soft, weight) + sigma * torch.randn(x.shape, generator=generator)


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
    images, classes = segmented(state, recipe.data_seed, recipe.data_count)
    torch.manual_seed(recipe.plan.seed)
    network = make(recipe)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (recipe.plan.batch,), generator=generator)
        x, y = to_images(images[chosen]), classes[chosen]
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        y = torch.where(mirrored[:, None, None], y.flip(2), y)
        logits = logits_of(network, grained(x, generator) if recipe.grain else x)
        accuracy = (logits.argmax(1) == y).float().mean().item()
        return F.cross_entropy(logits, y), {"accuracy": accuracy}

    average, seconds = train(network, recipe.plan, state / f"segmentation-{which}", loss)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in average.items()}
    network.load_state_dict(halves)
    metrics = measure(network, *segmented(state, TEST_SEED, TEST_COUNT))
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
