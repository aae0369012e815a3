"""Put trained weights into the package: a safetensors file and the card that goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from training import halved

from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.files import file_sha256
from ppap_framework.plugin import Card

WEIGHTS = Path(__file__).parent.parent / "src" / "ppap_plugin_shapes" / "weights"


def publish(
    name: str,
    component: str,
    kind: str,
    summary: str,
    state: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    default: bool,
    weights: Path = WEIGHTS,
) -> Path:
    """Write `weights/NAME.safetensors` in half precision and `weights/NAME.json`.

    Args:
        name: Of the card.
        component: The backend or guider that it is for.
        kind: "backend" or "guider".
        summary: One line.
        state: The averaged weights, under the network's own names.
        architecture: What the component's factory builds the network from.
        training: Recipe, steps, seconds, data seed and so on.
        metrics: What was measured of the network.
        default: Whether the component takes it when nothing else is asked for.
        weights: The folder `weights` of the package.
    """
    path = weights / f"{name}.safetensors"
    save_checkpoint(path, _halves(state), architecture, {"name": name, "training": training})
    _write_card(path, name, component, kind, summary, training, metrics, default, weights=weights)
    return path


def publish_folder(
    name: str,
    component: str,
    summary: str,
    network: Any,
    preprocessor: Mapping[str, Any],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    default: bool,
) -> Path:
    """Write `weights/NAME/`, a folder as transformers saves it, in half precision, and
    `weights/NAME.json`. The weights state config and preprocessing as well, and so are whole
    without the folder, but for a tokenizer.

    Args:
        network: A model of transformers, with the averaged weights.
        preprocessor: What `preprocessor_config.json` shall say. The rest is as for `publish`.
    """
    config = json.loads(network.config.to_json_string())
    config |= {"architectures": [type(network).__name__], "dtype": "float16"}
    folder = WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("config", config), ("preprocessor_config", preprocessor)):
        (folder / f"{file}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    path = folder / "model.safetensors"
    architecture = {"config": config, "preprocessor": dict(preprocessor)}
    notes = {"name": name, "training": training}
    save_checkpoint(path, _halves(network.state_dict()), architecture, notes)
    _write_card(path, name, component, "guider", summary, training, metrics, default)
    return path


def publish_pipeline(
    name: str,
    summary: str,
    pipe: Any,
    denoiser: str,
    image_size: int,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> Path:
    """Write `weights/NAME/`, a pipeline as diffusers saves it, in half precision, and the card of
    its denoiser's file, `weights/NAME.json`.

    Args:
        pipe: A pipeline of diffusers, with the averaged weights.
        denoiser: Name of the component that denoises.
        image_size: Height and width of what it draws. The rest is as for `publish`.
    """
    pipe.to(torch.float16).save_pretrained(WEIGHTS / name)
    path = WEIGHTS / name / denoiser / "diffusion_pytorch_model.safetensors"
    _write_card(path, name, "diffusers", "backend", summary, training, metrics, True, image_size)
    return path


def _halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halves = halved(state)
    too_large = [
        key
        for key, value in halves.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if too_large:
        raise ValueError(f"not finite in half precision: {too_large}")
    return halves


def _write_card(
    path: Path,
    name: str,
    component: str,
    kind: Any,
    summary: str,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    default: bool,
    image_size: int = 32,
    weights: Path = WEIGHTS,
) -> None:
    card = Card(
        name=name,
        component=component,
        kind=kind,
        summary=summary,
        uri=f"package://{path.relative_to(weights.parents[1]).as_posix()}",
        sha256=file_sha256(path),
        size=path.stat().st_size,
        licence="Apache-2.0",
        image_size=image_size,
        default=default,
    )
    record = {"card": attrs.asdict(card), "training": dict(training), "metrics": dict(metrics)}
    partial = weights / f"{name}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(weights / f"{name}.json")
