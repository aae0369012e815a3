"""Put the embedded GLIDE into the package, as one file: what train_glide.py trained, and what of it
was published before.

    python publish_glide.py --state ~/ppap-train
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click
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
)
from publish import WEIGHTS, publish
from safetensors.torch import load_file
from torch import Tensor

from ppap_framework.checkpoints import open_checkpoint


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


if __name__ == "__main__":
    main()
