"""What the recipes of vision networks share, from the command line to the published file.

A script says of what its networks are made, how they learn and what is measured of them; `command`
does the rest: renders, a seeded training that can be killed, weights in half precision, the card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import torch
from publish import publish, publish_folder
from torch import Tensor, nn
from training import (
    TEST_SEED,
    Plan,
    Truth,
    halved,
    record,
    rendered,
    state_option,
    to_images,
    train,
)
from transformers import CONFIG_MAPPING

TEST_COUNT = 2000
PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@attrs.frozen
class Recipe:
    """A network and its training.

    Attributes:
        name: Name of the card.
        summary: One line of the card.
        config: Config of transformers with its `model_type`; or, without a preprocessor, the
            architecture that the checkpoint states.
        data_seed: Seed of the scenes to learn.
        data_count: Their number.
        plan: How long and how to train.
        preprocessor: Content of `preprocessor_config.json`.
        grain: Whether training images are softened and lightly grained.
    """

    name: str
    summary: str
    config: dict[str, Any]
    data_seed: int = attrs.field(kw_only=True)
    data_count: int = attrs.field(kw_only=True)
    plan: Plan = attrs.field(kw_only=True)
    preprocessor: dict[str, Any] | None = attrs.field(kw_only=True, default=None)
    grain: bool = attrs.field(kw_only=True, default=False)


def labels(names: Sequence[str]) -> dict[str, Any]:
    """Class names as configs of transformers state them."""
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def of_transformers(recipe: Recipe, family: Any) -> nn.Module:
    """The network of a recipe, of a family such as `AutoModelForDepthEstimation`."""
    values = dict(recipe.config)
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    network: nn.Module = family.from_config(config)
    return network


def command(
    script: str,
    recipes: Mapping[str, Recipe],
    *,
    component: str,
    truth: Truth,
    make: Callable[[Recipe], nn.Module],
    loss: Callable[..., tuple[Tensor, dict[str, float]]],
    measure: Callable[[nn.Module, Tensor, Tensor], dict[str, Any]],
    folder: str,
    test_count: int = TEST_COUNT,
    **notes: object,
) -> click.Command:
    """The command line of a script: `python SCRIPT WHICH --state FOLDER`.

    Args:
        script: Path of the script.
        recipes: Its networks; `guide` is the default of the component.
        component: The guider that the weights are for.
        truth: What of the scenes is learnt.
        make: Makes a network, after torch was seeded.
        loss: loss(recipe, network, images, truths, generator) of one batch: images (B, 3, 32, 32)
            in [-1, 1]; also returns figures for the log.
        measure: Figures of a trained network on fresh renders, uint8, and their truths.
        folder: Beginning of the name of the folder in the state folder.
        test_count: Number of the fresh renders.
        notes: What else the card says of the training.
    """

    @click.command()
    @click.argument("which", type=click.Choice(sorted(recipes)))
    @state_option
    def main(which: str, state: Path) -> None:
        recipe = recipes[which]
        images, truths = rendered(state, recipe.data_seed, recipe.data_count, truth=truth)
        torch.manual_seed(recipe.plan.seed)
        network = make(recipe)

        def batch_loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            chosen = torch.randint(len(images), (recipe.plan.batch,), generator=generator)
            return loss(recipe, network, to_images(images[chosen]), truths[chosen], generator)

        average, seconds = train(network, recipe.plan, state / f"{folder}{which}", batch_loss)
        network.load_state_dict(halved(average))
        network.eval()
        fresh = rendered(state, TEST_SEED, test_count, truth=truth)
        with torch.no_grad():
            metrics = {"fresh_renders": test_count, **measure(network, *fresh)}
        name = f"{Path(script).name} {which}"
        data = recipe.data_seed, recipe.data_count
        training = record(name, recipe.plan, seconds, data, **notes)
        last = training, metrics, which == "guide"
        if recipe.preprocessor is None:
            named = recipe.name, component, "guider", recipe.summary
            path = publish(*named, network.state_dict(), recipe.config, *last)
        else:
            made = network, recipe.preprocessor
            path = publish_folder(recipe.name, component, recipe.summary, *made, *last)
        click.echo(f"{path}: {metrics}")

    return main
