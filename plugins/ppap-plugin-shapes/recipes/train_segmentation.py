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

import torch
import torch.nn.functional as F
from recipe import PREPROCESSOR, Recipe, command, labels, of_transformers
from torch import Tensor, nn
from training import Plan, grained, mirrored, to_images
from transformers import AutoModelForSemanticSegmentation

from ppap_plugin_shapes.world import SEGMENTATION_NAMES

SEGFORMER = PREPROCESSOR | {
    "image_processor_type": "SegformerImageProcessor",
    "do_reduce_labels": False,
}
LABELS = labels(SEGMENTATION_NAMES)
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
            **LABELS,
        },
        preprocessor=SEGFORMER,
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
            **LABELS,
        },
        preprocessor=SEGFORMER,
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


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """(B, K, 32, 32)."""
    return F.interpolate(network(x).logits, x.shape[-2:], mode="bilinear", align_corners=False)


def loss(
    recipe: Recipe, network: nn.Module, x: Tensor, classes: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    x, y = mirrored(generator, x, classes)
    logits = logits_of(network, grained(x, generator) if recipe.grain else x)
    accuracy = (logits.argmax(1) == y).float().mean().item()
    return F.cross_entropy(logits, y), {"accuracy": accuracy}


def measure(network: nn.Module, images: Tensor, classes: Tensor) -> dict[str, float]:
    """Intersection over union of each class over all pixels, its mean, and pixel accuracy."""
    guessed = torch.cat([logits_of(network, to_images(b)).argmax(1) for b in images.split(250)])
    number = len(SEGMENTATION_NAMES)
    confusion = torch.bincount((classes * number + guessed).flatten(), minlength=number**2)
    confusion = confusion.reshape(number, number).double()
    hits = confusion.diagonal()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return {
        "pixel_accuracy": (hits.sum() / confusion.sum()).item(),
        "mean_iou": iou.mean().item(),
        **{
            f"iou_{name}": value
            for name, value in zip(SEGMENTATION_NAMES, iou.tolist(), strict=True)
        },
    }


main = command(
    __file__,
    RECIPES,
    component="segmentation",
    truth="segmentation",
    make=lambda recipe: of_transformers(recipe, AutoModelForSemanticSegmentation),
    loss=loss,
    measure=measure,
    folder="segmentation-",
)

if __name__ == "__main__":
    main()
