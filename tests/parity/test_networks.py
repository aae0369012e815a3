"""The networks, against outputs and gradients of the published code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ppap_plugin_adm import build

BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {"guided_diffusion.": build}


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


METRICS = {"relative L2": relative_l2}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.mark.parity("network", official_class=BUILDERS)
def test_network(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    official_class = record["official_class"]
    builder = next(b for prefix, b in BUILDERS.items() if official_class.startswith(prefix))
    network = builder(official_class, record["config"]).eval().requires_grad_(False)
    network.load_state_dict({n: p.float() for n, p in prefixed(tensors, "param.").items()})
    inputs = prefixed(tensors, "input.")
    x = inputs["x"].requires_grad_()

    output = network(**inputs)
    objectives = {"grad_x": (output * tensors["fixed"]).sum()}
    if "guidance_grad" in tensors:
        chosen = output.log_softmax(dim=-1).gather(1, tensors["guidance_labels"][:, None])
        objectives["guidance_grad"] = chosen.sum()
    actual = {"output": output.detach()}
    for name, objective in objectives.items():
        (actual[name],) = torch.autograd.grad(objective, x, retain_graph=True)

    distance = METRICS[record["tolerance"]["metric"]]
    errors = {name: distance(tensor, tensors[name]) for name, tensor in actual.items()}
    assert all(error <= record["tolerance"]["value"] for error in errors.values()), errors

    if "output_fp16" in tensors:
        network.cast_torso(torch.float16)
        with torch.no_grad():
            error = distance(network(**inputs), tensors["output_fp16"])
        assert error <= record["tolerance"]["value_fp16"]
