"""The released checkpoints' state dicts: names in order, shapes, dtypes, number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import ppap_plugin_adm
import ppap_plugin_glide
from ppap_plugin_adm.trunk import Trunk
from ppap_plugin_glide import released
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


CONVERTED = {
    **{stage["official_class"]: stage["config"] for stage in released.STAGES.values()},
    "glide_text2im.clip.encoders.": released.CLIP_CONFIG,
}


@pytest.mark.parity("manifest", official_class=CONVERTED)
def test_what_conversion_states_is_what_was_released(record: dict[str, Any]) -> None:
    official_class = record["official_class"]
    stated = next(c for name, c in CONVERTED.items() if official_class.startswith(name))
    assert {name: record["config"][name] for name in stated} == stated
