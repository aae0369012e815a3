"""Low-rank changes against the released PPAP code, and the experts that it leaves behind."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap_framework.components import ExpertAdapter
from ppap_plugin_bias.adapter import make_bias
from ppap_plugin_lora.adapter import make_lora
from ppap_plugin_lora.options import LoraOptions

ROOT = Path(os.environ.get("PPAP_PARITY_DIR") or Path(__file__).parent)
LIBRARIES = {"torchvision": "torchvision.models:get_model", "timm": "timm:create_model"}


def holding(layer: nn.Module, tensors: dict[str, Tensor], kind: str, **options: Any) -> nn.Module:
    """The layer with the released expert's tensors in it, merged."""
    adapter = make_lora(LoraOptions(targets="*", variant="reshaped", **options))
    layer.load_state_dict(
        {"weight": tensors[f"{kind}.weight_base"], "bias": tensors[f"{kind}.bias"]}
    )
    adapter.attach(layer, 1)
    adapter.load_state_dict(
        {f"0.weight.{name}": tensors[f"{kind}.{name}"] for name in ("lora_A", "lora_B")}
    )
    adapter.activate(0)
    return layer


@pytest.mark.parity("lora")
def test_convolution(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    told = record["conv"]
    layer = nn.Conv2d(
        told["in_channels"],
        told["out_channels"],
        told["kernel"],
        stride=told["stride"],
        padding=told["padding"],
    )
    layer = holding(layer, tensors, "conv", rank=told["r"], alpha=told["lora_alpha"])
    torch.testing.assert_close(layer.weight.data, tensors["conv.weight_merged"])
    for name in ("out_merged", "out_unmerged"):
        torch.testing.assert_close(layer(tensors["conv.x"]).detach(), tensors[f"conv.{name}"])
    layer = holding(layer, tensors, "conv", rank=told["r"], alpha=told["r"])
    change = layer.weight.data - tensors["conv.weight_base"]
    torch.testing.assert_close(change, tensors["conv.delta_weight_unscaled"], atol=1e-5, rtol=1e-5)


@pytest.mark.parity("lora")
@pytest.mark.parametrize("scaled", [True, False])
def test_linear(record: dict[str, Any], tensors: dict[str, Tensor], scaled: bool) -> None:
    """Unmerged, as they are in its pipeline, its linear layers leave alpha / r out."""
    told = record["linear"]
    alpha = told["lora_alpha"] if scaled else told["r"]
    layer = nn.Linear(told["in_features"], told["out_features"])
    layer = holding(layer, tensors, "linear", rank=told["r"], alpha=alpha)
    expected = tensors["linear.out_merged" if scaled else "linear.out_unmerged"]
    torch.testing.assert_close(layer(tensors["linear.x"]).detach(), expected)
    if scaled:
        torch.testing.assert_close(layer.weight.data, tensors["linear.weight_merged"])


def experts() -> dict[str, dict[str, Any]]:
    """The records of released experts whose network a library at hand can build."""
    found = {}
    for path in sorted(ROOT.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"gamma", "base", "state_dict"} <= set(record):
            continue
        if record["base"].split()[0] in LIBRARIES:
            found[record["name"]] = record
    return found


def shapes(adapter: ExpertAdapter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}


def own_name(key: str, modules: set[str]) -> str:
    """A tensor's name in the network itself, which is wrapped, as are its adapted layers."""
    *path, tensor = key.split(".")
    if path[-1] in ("conv", "linear"):
        path.pop()
    while path and ".".join(path) not in modules:
        path.pop(0)
    return ".".join([*path, tensor])


@pytest.mark.parametrize("name", experts())
def test_released_expert_fits(name: str) -> None:
    """Every tensor of it that was trained has its place here, in the same shape, and LoRA has no
    other.
    """
    record = experts()[name]
    library, model, *_ = record["base"].split()
    pytest.importorskip(library, reason="builds the network that the experts were trained for")
    module, _, attribute = LIBRARIES[library].partition(":")
    with torch.device("meta"):
        network = getattr(importlib.import_module(module), attribute)(model)
    names = {name for name, _ in network.named_modules()}
    told = {own_name(key, names): (shape, kind) for key, shape, _, kind in record["state_dict"]}
    layers = [key.removesuffix(".lora_A") for key in told if key.endswith(".lora_A")]
    lora = make_lora(
        LoraOptions(
            rank=record["gamma"], alpha=record["lora_alpha"], targets=layers, variant="reshaped"
        )
    )
    lora.attach(network, 1)
    theirs = {
        f"0.{layer}.weight.{part}": tuple(told[f"{layer}.{part}"][0])
        for layer in layers
        for part in ("lora_A", "lora_B")
    }
    assert shapes(lora) == theirs
    assert sum(p.numel() for p in lora.parameters(0)) == record["lora_parameters"]

    bias = make_bias()
    bias.attach(network, 1)
    ours = shapes(bias)
    for key, (shape, kind) in told.items():
        if kind == "trainable" and ".lora_" not in key:
            assert ours[f"0.{key}.value"] == tuple(shape)
        if kind == "buffer":
            assert ours[f"0.{key}"] == tuple(shape)
