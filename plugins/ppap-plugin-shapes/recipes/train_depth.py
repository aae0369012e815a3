"""The depth networks of the embedded world.

`guide` is the off-the-shelf network: a small DPT (Ranftl et al. 2021, arXiv 2103.13413), trained on
clean renders and nothing else, so that it has never seen noise. It predicts disparity, as MiDaS
does. `judge` measures results and never guides: a GLPN (Kim et al. 2022, arXiv 2201.07436), of
another seed and other data, which predicts distance, trained on renders that are softened and
lightly grained, so that it forgives what generated pictures have and renders have not.

    python train_depth.py guide --state ~/ppap-train
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
from transformers import CONFIG_MAPPING, MODEL_FOR_DEPTH_ESTIMATION_MAPPING

from ppap_plugin_midas.loss import ScaleShiftInvariant, depth_metrics

TEST_SEED, TEST_COUNT = 900, 2000
PREPROCESSOR = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
}
MEAN_DISPARITY, MEAN_DISTANCE = 0.28, 4.0  # of a few hundred renders, rounded


@attrs.frozen
class Recipe:
    name: str
    summary: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    data_seed: int
    data_count: int
    plan: Plan


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
        {"image_processor_type": "DPTImageProcessor", "size": {"height": 32, "width": 32}},
        data_seed=8,
        data_count=8000,
        plan=Plan(
            steps=1200,
            decay=800,
            warmup=100,
            batch=32,
            learning_rate=1.5e-3,
            seed=81,
            weight_decay=0.05,
            ema=0.99,
            save_every=50,
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
        {
            "image_processor_type": "GLPNImageProcessor",
            "size_divisor": 32,
        },
        data_seed=9,
        data_count=8000,
        plan=Plan(
            steps=1200,
            decay=800,
            warmup=100,
            batch=32,
            learning_rate=1.5e-3,
            seed=91,
            weight_decay=0.05,
            ema=0.99,
            save_every=50,
        ),
    ),
}


def make(recipe: Recipe) -> nn.Module:
    values = dict(recipe.config)
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    return MODEL_FOR_DEPTH_ESTIMATION_MAPPING[type(config)](config)


def shown(network: nn.Module, x: Tensor, which: str) -> Tensor:
    """What a network predicts of images, in its own units: (B, 32, 32)."""
    maps = network(pixel_values=x if which == "guide" else (x + 1) / 2).predicted_depth
    return F.interpolate(maps[:, None], x.shape[-2:], mode="area")[:, 0]


@torch.no_grad()
def measure(network: nn.Module, images: Tensor, depth: Tensor, which: str) -> dict[str, float]:
    """The mean over scenes of what `depth_metrics` says against the true disparity."""
    network.eval()
    said = torch.cat([shown(network, to_images(block), which) for block in images.split(250)])
    figures = depth_metrics(said if which == "guide" else 1 / said, 1 / depth)
    return {name: round(values.mean().item(), 5) for name, values in figures.items()}


@click.command()
@click.argument("which", type=click.Choice(sorted(RECIPES)))
@click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="Folder that survives a kill."
)
def main(which: str, state: Path) -> None:
    recipe = RECIPES[which]
    images, depth = rendered(state, recipe.data_seed, recipe.data_count, truth="depth")
    torch.manual_seed(recipe.plan.seed)
    network: Any = make(recipe)
    if which == "guide":  # it ends in a ReLU, which must not begin with nothing but zeros
        nn.init.constant_(network.head.head[4].bias, MEAN_DISPARITY)
    invariant = ScaleShiftInvariant()

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (recipe.plan.batch,), generator=generator)
        x, z = mirrored(generator, to_images(images[chosen]), depth[chosen])
        x = grained(x, generator) if which == "judge" else x
        with torch.autocast("cpu", torch.bfloat16):
            said = shown(network, x, which)
        said = said.float()
        if which == "guide":
            absolute = F.l1_loss(said, 1 / z) / MEAN_DISPARITY
            shape = invariant.energy(said, 1 / z).mean()
        else:
            absolute = F.l1_loss(said.log(), z.log())
            shape = invariant.energy(1 / said, 1 / z).mean()
        return absolute + 0.5 * shape, {"absolute": absolute.item(), "shape": shape.item()}

    average, seconds = train(network, recipe.plan, state / f"depth-{which}", loss)
    network.load_state_dict(halved(average))
    fresh = rendered(state, TEST_SEED, TEST_COUNT, truth="depth")
    metrics = {"fresh_renders": TEST_COUNT, **measure(network, *fresh, which)}
    training = {
        "recipe": f"train_depth.py {which}",
        **attrs.asdict(recipe.plan),
        "precision": "bfloat16 products",
        "seconds": round(seconds),
        "data_seed": recipe.data_seed,
        "data_count": recipe.data_count,
        "test_seed": TEST_SEED,
    }
    preprocessor = (PREPROCESSOR if which == "guide" else {}) | recipe.preprocessor
    path = publish_folder(
        recipe.name,
        "depth",
        recipe.summary,
        network,
        preprocessor,
        training,
        metrics,
        which == "guide",
    )
    click.echo(f"{path}: {metrics}")


if __name__ == "__main__":
    main()
