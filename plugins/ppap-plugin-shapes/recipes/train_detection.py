"""The detector of the embedded world.

`guide` is the off-the-shelf network: a small Deformable DETR (Zhu et al. 2021, arXiv 2010.04159) on
a ConvNeXt, trained on clean renders and nothing else, so that it has never seen noise. Its boxes
are not refined from layer to layer, so that no gradient is cut off.

    python train_detection.py guide --state ~/ppap-train
"""

from __future__ import annotations

from typing import Any

import torch
from recipe import PREPROCESSOR, Recipe, command, labels, of_transformers
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou
from training import Plan, to_images
from transformers import AutoModelForObjectDetection

from ppap_plugin_shapes.world import CLASS_NAMES

TRANSFORMER = {
    "num_queries": 9,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "dropout": 0.0,
    "auxiliary_loss": True,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}


def _backbone(width: int) -> dict[str, Any]:
    return {
        "model_type": "convnext",
        "patch_size": 4,
        "hidden_sizes": [width],
        "depths": [3],
        "num_stages": 1,
        "drop_path_rate": 0.0,
        "out_features": ["stage1"],
    }


RECIPES = {
    "guide": Recipe(
        "shapes-detr",
        "A small Deformable DETR that has seen clean renders only",
        {
            "model_type": "deformable_detr",
            "backbone_config": _backbone(64),
            "num_feature_levels": 1,
            "with_box_refine": False,
            **TRANSFORMER,
            **labels(CLASS_NAMES),
        },
        preprocessor=PREPROCESSOR
        | {
            "image_processor_type": "DetrImageProcessor",
            "do_convert_annotations": True,
            "do_pad": False,
        },
        data_seed=8,
        data_count=8000,
        plan=Plan(
            steps=6000,
            decay=4000,
            warmup=100,
            batch=16,
            learning_rate=1e-3,
            seed=81,
            weight_decay=0.01,
            ema=0.99,
            save_every=100,
        ),
    ),
}


def flipped(x: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and their boxes (B, n, 5), mirrored by chance."""
    chosen = torch.rand(len(x), generator=generator) < 0.5
    mirrored = torch.stack(
        [boxes[..., 0], 1 - boxes[..., 3], boxes[..., 2], 1 - boxes[..., 1], boxes[..., 4]], -1
    )
    return (
        torch.where(chosen[:, None, None, None], x.flip(-1), x),
        torch.where(chosen[:, None, None], mirrored, boxes),
    )


def labels_of(boxes: Tensor) -> list[dict[str, Tensor]]:
    """Truths (B, n, 5) as transformers' losses read them."""
    return [
        {
            "class_labels": rows[:, 0].long(),
            "boxes": box_convert(rows[:, 1:], "xyxy", "cxcywh"),
        }
        for rows in (image[image[:, 0] >= 0] for image in boxes)
    ]


def loss(
    recipe: Recipe, network: nn.Module, x: Tensor, boxes: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    x, truths = flipped(x, boxes, generator)
    seen = network(x, labels=labels_of(truths))
    parts = ("loss_ce", "loss_bbox", "loss_giou")
    return seen.loss, {name: seen.loss_dict[name].item() for name in parts}


def measure(network: nn.Module, images: Tensor, boxes: Tensor) -> dict[str, float]:
    """How many solids are found (class, and IoU of at least 0.5 or 0.75), the mean IoU of those of
    the right class, and how many detections of a score above 0.5 are of no solid.
    """
    found = found_closely = solids = detections = false = 0
    overlaps = []
    for x, truths in zip(images.split(250), boxes.split(250), strict=True):
        seen = network(to_images(x))
        scores, classes = seen.logits.sigmoid().max(-1)
        corners = box_convert(seen.pred_boxes, "cxcywh", "xyxy")
        for score, kind, corner, truth in zip(scores, classes, corners, truths, strict=True):
            truth, sure = truth[truth[:, 0] >= 0], score > 0.5
            iou = box_iou(truth[:, 1:], corner[sure])
            iou = iou * (truth[:, :1] == kind[sure])
            solids += len(truth)
            detections += int(sure.sum())
            best = iou.amax(1) if sure.any() else torch.zeros(len(truth))
            found += int((best >= 0.5).sum())
            found_closely += int((best >= 0.75).sum())
            overlaps += best[best > 0].tolist()
            false += int((iou.amax(0) < 0.5).sum()) if sure.any() else 0
    return {
        "found": found / solids,
        "found_closely": found_closely / solids,
        "mean_iou_of_found": sum(overlaps) / max(1, len(overlaps)),
        "false_detections": false / max(1, detections),
    }


main = command(
    __file__,
    RECIPES,
    component="detection",
    truth="boxes",
    make=lambda recipe: of_transformers(recipe, AutoModelForObjectDetection),
    loss=loss,
    measure=measure,
    folder="detection-",
)

if __name__ == "__main__":
    main()
