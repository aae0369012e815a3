"""Put the embedded GLIDE into the package, as one file: what train_glide.py trained, and what of it
was published before; and measure how well it enlarges.

    python publish_glide.py --state ~/ppap-train
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click
import torch
import torch.nn.functional as F
from glide import (
    CLASSES,
    DATA_COUNT,
    DATA_SEED,
    EMPTY,
    NAME,
    PROCESSES,
    RECIPE,
    SIZES,
    START,
    VLB_WEIGHT,
    captions_file,
    config_of,
    tokens_of,
)
from publish import WEIGHTS, publish
from safetensors.torch import load_file
from torch import Tensor
from train_glide import TEST_COUNT, TEST_SEED, shrunk
from training import rendered, to_images

from ppap_framework.checkpoints import open_checkpoint
from ppap_framework.diffusion import Process, cascade
from ppap_plugin_glide import build
from ppap_plugin_glide.architecture import StageArchitecture
from ppap_plugin_glide.backend import Condition, UpsamplerStage

PICTURES = 64  # that the enlarging is measured with


@click.command()
@click.option("--state", type=click.Path(path_type=Path), required=True)
def main(state: Path) -> None:
    """Put the trained stages into the package, as one file. A stage that was not trained here stays
    as it was published; without an upsampler the base goes alone.
    """
    kept = json.loads(captions_file(state).read_text())
    stages = [
        found
        for name in CLASSES
        if (found := trained(state, name, kept["tokenizer"]) or published(name, kept["tokenizer"]))
    ]
    if "base" not in [stage.name for stage in stages]:
        raise click.ClickException("the base is neither trained nor published")
    for stage in stages:
        if stage.name == "upsampler":
            stage.metrics["psnr"] = psnr(state, kept["tokenizer"], stage)
    path = publish(
        NAME,
        "glide",
        "backend",
        "Small scenes of solids from their captions, 32 x 32"
        + (", and 64 x 64" if len(stages) > 1 else ""),
        {f"{stage.name}.{key}": value for stage in stages for key, value in stage.weights.items()},
        {
            "tokenizer": kept["tokenizer"],
            **{stage.name: stage.architecture for stage in stages},
        },
        {
            "recipe": "train_glide.py",
            "data_seed": DATA_SEED,
            **{stage.name: stage.training for stage in stages},
            "begun_with": START,
            "data_count": DATA_COUNT,
            "empty_captions": EMPTY,
            "vlb_weight": VLB_WEIGHT,
        },
        {stage.name: stage.metrics for stage in stages},
        default=True,
    )
    click.echo(str(path))


@attrs.frozen
class Trained:
    """A stage as it is published."""

    name: str
    weights: dict[str, Tensor]
    architecture: Any
    training: dict[str, Any]
    metrics: dict[str, Any]


def trained(state: Path, name: str, tokenizer: dict[str, Any]) -> Trained | None:
    """What a training has left in its folder."""
    folder = state / f"glide-{name}"
    if not (folder / "done.st").exists():
        return None
    record = json.loads((folder / "done.json").read_text())
    metrics = record.pop("metrics")
    architecture = {
        "official_class": CLASSES[name],
        "config": config_of(tokenizer),
        "image_size": SIZES[name],
        "process": PROCESSES[name],
        **({"recipe": RECIPE} if name == "upsampler" else {}),
    }
    return Trained(name, load_file(folder / "done.st"), architecture, record, metrics)


def published(name: str, tokenizer: dict[str, Any]) -> Trained | None:
    """What the package has of a stage."""
    path = WEIGHTS / f"{NAME}.safetensors"
    if not path.exists():
        return None
    checkpoint = open_checkpoint(path)
    if name not in checkpoint.architecture:
        return None
    if checkpoint.architecture["tokenizer"] != tokenizer:
        raise click.ClickException(f"the published {name} reads with another tokenizer")
    record = json.loads(path.with_suffix(".json").read_text())
    prefix = f"{name}."
    weights = {
        key.removeprefix(prefix): value
        for key, value in checkpoint.state_dict().items()
        if key.startswith(prefix)
    }
    architecture = checkpoint.architecture[name]
    return Trained(name, weights, architecture, record["training"][name], record["metrics"][name])


def psnr(state: Path, tokenizer: dict[str, Any], stage: Trained) -> dict[str, float]:
    """How near to fresh renders the stage enlarges their halves, in dB: by its own recipe, in as
    many steps as published, and bicubic interpolation beside it.
    """
    images, _ = rendered(state, TEST_SEED, TEST_COUNT, SIZES["upsampler"])
    x0 = to_images(images[:PICTURES])
    low = shrunk(x0, None)
    condition = Condition(tokens_of(tokenizer)([""] * PICTURES), None)
    network = build(CLASSES["upsampler"], config_of(tokenizer))
    network.load_state_dict({key: value.float() for key, value in stage.weights.items()})
    network.to(memory_format=torch.channels_last).eval()

    def of(images: Tensor) -> float:
        error = ((images.clamp(-1, 1) - x0) / 2).square().mean((1, 2, 3))
        return round(-10 * error.log10().mean().item(), 2)

    found = {"bicubic": of(F.interpolate(low, scale_factor=2, mode="bicubic"))}
    for respacing in (RECIPE["respacing"], "fast27"):
        stated = stage.architecture | {"recipe": {**RECIPE, "respacing": respacing}}
        drawn = UpsamplerStage(network, StageArchitecture(**stated))
        with torch.no_grad():
            later = [(drawn, Process.following(drawn))]
            (enlarged,) = cascade(later, low, condition, seed=0, start=0)
        found[f"respacing_{respacing}"] = of(enlarged)
    return found


if __name__ == "__main__":
    main()
