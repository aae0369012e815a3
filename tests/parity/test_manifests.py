"""The released checkpoints' state dicts: names in order, shapes, dtypes, number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import ppap_plugin_adm
import ppap_plugin_adm.released
import ppap_plugin_glide
import ppap_plugin_glide.released
from ppap_framework.plugin import Card
from ppap_plugin_adm.trunk import Trunk
from ppap_plugin_glide.unet import TextUNet

BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], nn.Module]] = {
    "guided_diffusion.": ppap_plugin_adm.build,
    "glide_text2im.": ppap_plugin_glide.build,
}


def rows(network: nn.Module) -> list[list[Any]]:
    """[name, shape, dtype] of every tensor, in the order of the state dict."""
    return [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in network.state_dict().items()
    ]


@pytest.mark.parity("manifest", official_class=BUILDERS)
def test_manifest(record: dict[str, Any]) -> None:
    official_class = record["official_class"]
    builder = next(b for prefix, b in BUILDERS.items() if official_class.startswith(prefix))
    with torch.device("meta"):
        network = builder(official_class, record["config"])

    def expected(dtype: str) -> list[list[Any]]:
        wanted = [record["columns"].index(column) for column in ("key", "shape", dtype)]
        return [[row[index] for index in wanted] for row in record["state_dict"]]

    assert rows(network) == expected("dtype_as_constructed")
    assert sum(p.numel() for p in network.parameters()) == record["parameter_count"]
    if "dtype_after_convert_to_fp16" in record["columns"]:
        assert isinstance(network, Trunk)
        cast = network.cast if isinstance(network, TextUNet) else network.cast_torso
        cast(torch.float16)
        assert rows(network) == expected("dtype_after_convert_to_fp16")


CARDS = {
    card.uri.rpartition("/")[2]: card
    for released in (ppap_plugin_adm.released, ppap_plugin_glide.released)
    for card in released.cards()
}


def stated(card: Card) -> Mapping[str, Any]:
    """What a card says of its one network: its class, configuration and process."""
    architecture = card.architecture
    stage: Mapping[str, Any] = architecture.get(card.prefix.rstrip("."), architecture)
    return stage


@pytest.mark.parity("manifest", official_class=BUILDERS)
def test_the_card_is_of_what_was_released(record: dict[str, Any]) -> None:
    card, official_class = CARDS[record["checkpoint_file"]], record["official_class"]
    said = stated(card)
    assert {name: record["config"].get(name, said["config"][name]) for name in said["config"]} == (
        said["config"]
    )
    assert card.parameters == record["parameter_count"]
    if card.component == "clip":
        assert official_class.startswith("glide_text2im.clip.encoders.")
        return
    assert said["official_class"] == official_class
    schedules = {"linear": "linear", "cosine": "cosine", "squaredcos_cap_v2": "cosine"}
    trained_on = record["resolved_script_args"].get("noise_schedule")
    assert trained_on is None or said["process"]["schedule"] == schedules[trained_on]


@pytest.mark.parametrize("file", CARDS)
def test_a_card_builds_the_network_that_it_counts(file: str) -> None:
    card = CARDS[file]
    said = stated(card)
    official_class = said["official_class"]
    if card.component == "clip":
        encoder = "ImageEncoder" if card.prefix.startswith("image") else "TextEncoder"
        official_class = f"glide_text2im.clip.encoders.{encoder}"
    builder = next(b for prefix, b in BUILDERS.items() if official_class.startswith(prefix))
    with torch.device("meta"):
        network = builder(official_class, said["config"])
    assert sum(p.numel() for p in network.parameters()) == card.parameters


def test_every_released_file_has_a_card() -> None:
    assert len(CARDS) == 15 + 6
    assert all(card.licence == "MIT" for card in CARDS.values())
