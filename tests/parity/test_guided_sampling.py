"""Classifier-free guided sampling of the published code, step by step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ppap_framework.diffusion import Process, ddpm_step, space_timesteps, trajectory
from ppap_plugin_glide import build
from ppap_plugin_glide.architecture import StageArchitecture
from ppap_plugin_glide.backend import BaseStage, Condition
from ppap_plugin_glide.tokens import Texts

ROOT = Path(os.environ.get("PPAP_PARITY_DIR") or Path(__file__).parent)


def network_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The case whose network is used, wherever its tensors lie."""
    (path,) = ROOT.rglob(f"{name}.safetensors")
    return json.loads(path.with_suffix(".json").read_text()), load_file(path)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parity("guided_sampling")
def test_guided_sampling(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    owner, parameters = network_case(record["uses_parameters_of"])
    network = build(owner["official_class"], owner["config"]).eval().requires_grad_(False)
    network.load_state_dict(
        {
            name.removeprefix("param."): tensor.float()
            for name, tensor in parameters.items()
            if name.startswith("param.")
        }
    )
    rows = len(tensors["noise_init"]) // 2  # the conditional ones come first
    architecture = StageArchitecture(
        official_class=owner["official_class"],
        config=owner["config"],
        image_size=tensors["noise_init"].shape[-1],
        process={"schedule": record["noise_schedule"], "timesteps": 1000},
    )
    stage = BaseStage(network, architecture, record["guidance_scale"])
    tokens = tensors["tokens"]
    mask = tensors.get("mask", torch.ones_like(tokens)).bool()  # one is for networks with padding
    condition = Condition(Texts(tokens[:rows], mask[:rows]), Texts(tokens[rows:], mask[rows:]))
    tolerance = record["tolerance"]["value"]
    if not record["clip_denoised"]:
        stage.clip = lambda x0: x0  # type: ignore[method-assign]

    steps = space_timesteps(1000, record["timestep_respacing"])
    process = Process(stage.schedule, steps, stage.variance)
    noises, timesteps = iter(tensors["noises"][:, :rows]), list[float]()

    def step(process: Process, index: int, *given: Any) -> Any:
        timesteps.append(process.timesteps[index])
        return ddpm_step(process, index, *given)

    states = list(
        trajectory(
            stage,
            process,
            tensors["noise_init"][:rows],
            lambda _: next(noises),
            condition=condition,
            step=step,
        )
    )
    assert timesteps == tensors["model_t"][:, 0].tolist()
    for index, (x, prediction) in enumerate(states):
        assert relative_l2(x, tensors["samples"][index, :rows]) <= tolerance
        assert relative_l2(prediction.x0, tensors["pred_xstart"][index, :rows]) <= tolerance
    first = stage.denoise(
        tensors["noise_init"][:rows], torch.full((rows,), timesteps[0]), condition
    )
    assert first.variance is not None
    said = torch.cat([first.eps, first.variance], dim=1)
    assert relative_l2(said, tensors["model_fn_out_first"][:rows]) <= tolerance
