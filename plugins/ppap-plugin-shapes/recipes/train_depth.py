"""The depth networks of the embedded world.

`guide` is the off-the-shelf network: a small DPT (Ranftl et al. 2021, arXiv 2103.13413), trained on
clean renders and nothing else, so that it has never seen noise. It predicts disparity, as MiDaS
does. `judge` measures results and never guides: a GLPN (Kim et al. 2022, arXiv 2201.07436), of
another seed and other data, which predicts distance, trained on renders that are softened and
lightly grained, so that it forgives what generated pictures have and renders have not.

    python train_depth.py guide --state ~/ppap-train
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from recipe import PREPROCESSOR, Recipe, command, of_transformers
from torch import Tensor, nn
from training import Plan, grained, mirrored, to_images
from transformers import AutoModelForDepthEstimation

from ppap_plugin_midas.loss import ScaleShiftInvariant, depth_metrics

MEAN_DISPARITY, MEAN_DISTANCE = 0.28, 4.0  # of a few hundred renders, rounded
INVARIANT = ScaleShiftInvariant()


RECIPES = {
    "guide": Recipe(
        "shapes-dpt",
        "A small DPT that has seen clean renders only",
        {
            "model_type": "dpt",
            "image_size": 32,
            "patch_size": 4,
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 384,
            "hidden_dropout_prob": 0.0,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [32, 48, 64, 64],
            "fusion_hidden_size": 32,
            "reassemble_factors": [2, 1, 0.5, 0.25],
            "use_auxiliary_head": False,
        },
        preprocessor=PREPROCESSOR | {"image_processor_type": "DPTImageProcessor"},
        data_seed=8,
        data_count=20_000,
        plan=Plan(
            steps=8000,
            decay=5000,
            warmup=100,
            batch=32,
            learning_rate=1.5e-3,
            seed=81,
            weight_decay=0.05,
            ema=0.998,
            save_every=200,
        ),
    ),
    "judge": Recipe(
        "shapes-depth-judge",
        "A GLPN that measures results and never guides",
        {
            "model_type": "glpn",
            "patch_sizes": [3, 3, 3, 3],
            "strides": [2, 2, 2, 2],
            "sr_ratios": [4, 2, 1, 1],
            "hidden_sizes": [32, 48, 64, 96],
            "depths": [1, 2, 2, 1],
            "num_attention_heads": [1, 2, 2, 3],
            "decoder_hidden_size": 32,
            "drop_path_rate": 0.0,
            "max_depth": 12,
        },
        preprocessor={"image_processor_type": "GLPNImageProcessor", "size_divisor": 32},
        data_seed=9,
        data_count=20_000,
        plan=Plan(
            steps=8000,
            decay=5000,
            warmup=100,
            batch=32,
            learning_rate=1.5e-3,
            seed=91,
            weight_decay=0.05,
            ema=0.998,
            save_every=200,
        ),
        grain=True,
    ),
}


def make(recipe: Recipe) -> nn.Module:
    network: Any = of_transformers(recipe, AutoModelForDepthEstimation)
    if says_disparity(network):  # it ends in a ReLU, which must not begin with nothing but zeros
        nn.init.constant_(network.head.head[4].bias, MEAN_DISPARITY)
    return network


def says_disparity(network: Any) -> bool:
    return network.config.model_type == "dpt"


def shown(network: nn.Module, x: Tensor) -> Tensor:
    """What a network predicts of images, in its own units: (B, 32, 32)."""
    maps = network(pixel_values=x if says_disparity(network) else (x + 1) / 2).predicted_depth
    return F.interpolate(maps[:, None], x.shape[-2:], mode="area")[:, 0]


def loss(
    recipe: Recipe, network: nn.Module, x: Tensor, depth: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    x, z = mirrored(generator, x, depth)
    x = grained(x, generator) if recipe.grain else x
    with torch.autocast("cpu", torch.bfloat16):
        said = shown(network, x)
    said = said.float()
    if says_disparity(network):
        absolute = F.l1_loss(said, 1 / z) / MEAN_DISPARITY
        shape = INVARIANT.energy(said, 1 / z).mean()
    else:
        absolute = F.l1_loss(said.log(), z.log())
        shape = INVARIANT.energy(1 / said, 1 / z).mean()
    return absolute + 0.5 * shape, {"absolute": absolute.item(), "shape": shape.item()}


def measure(network: nn.Module, images: Tensor, depth: Tensor) -> dict[str, float]:
    """The mean over scenes of what `depth_metrics` says against the true disparity."""
    said = torch.cat([shown(network, to_images(block)) for block in images.split(250)])
    figures = depth_metrics(said if says_disparity(network) else 1 / said, 1 / depth)
    return {name: round(values.mean().item(), 5) for name, values in figures.items()}


main = command(
    __file__,
    RECIPES,
    component="depth",
    truth="depth",
    make=make,
    loss=loss,
    measure=measure,
    folder="depth-",
    precision="bfloat16 products",
)

if __name__ == "__main__":
    main()
