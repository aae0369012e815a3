"""The released checkpoints' state dicts: names in order, shapes, dtypes, number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from ppap_plugin_adm import build

BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {"guided_diffusion.": build}


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
    network.cast_torso(torch.float16)
    assert rows(network) == expected("dtype_after_convert_to_fp16")
