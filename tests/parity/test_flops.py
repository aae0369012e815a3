"""FLOPs of a forward pass of every released network, as the published code takes them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from glide_files import stage as stated
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ppap_plugin_adm
import ppap_plugin_glide
from ppap_framework.components import DiffusionBackend
from ppap_framework.origin import Origin
from ppap_framework.run import LoadedBackend, Sampling, plan
from ppap_framework.run.estimate import _copy, _measured, estimate
from ppap_plugin_adm.architecture import Process
from ppap_plugin_adm.backend import AdmBackend, AdmStage
from ppap_plugin_glide.architecture import StageArchitecture
from ppap_plugin_glide.backend import BaseStage, GlideBackend, UpsamplerStage
from ppap_plugin_glide.tokens import PromptTokens, Texts
from ppap_plugin_glide.unet import TextUNet

HERE = Path(__file__).parent
FLOPS = {
    name: record["forward_flops_batch1"]
    for name, record in json.loads((HERE / "flops.json").read_text())["forward"].items()
}
# Of the attention that pools 8 x 8 places of 512 channels and their mean, the published code
# computes what each of them attends to and its 1000 logits, and throws all away but the mean's.
SPARED = 2 * 64 * (2 * 65 * 512 + 512 * 1000)


def manifest(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((HERE / "manifests" / f"{name}.json").read_text())
    return record


def network(record: dict[str, Any]) -> nn.Module:
    adm = record["official_class"].startswith("guided_diffusion.")
    with torch.device("meta"):
        made = (ppap_plugin_adm if adm else ppap_plugin_glide).build(
            record["official_class"], record["config"]
        )
    return made.eval()


def size(record: dict[str, Any]) -> int:
    side: int = {**record["resolved_script_args"], **record["config"]}["image_size"]
    return side


def fed(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the published code feeds the network, for one image."""
    side, config, name = size(record), record["config"], record["official_class"]
    given = {
        "x": torch.zeros(1, 3, side, side),
        "timesteps": torch.zeros(1, dtype=torch.int64),
    }
    if config.get("num_classes"):
        given["y"] = torch.zeros(1, dtype=torch.int64)
    if "SuperRes" in name:
        given["low_res"] = torch.zeros(1, 3, side // 4, side // 4)
    if "text_ctx" in config:
        given["tokens"] = torch.zeros(1, config["text_ctx"], dtype=torch.int64)
        given["mask"] = torch.ones(1, config["text_ctx"], dtype=torch.bool)
    return {key: value.to("meta") for key, value in given.items()}


RUNS = ("adm_256x256_diffusion_uncond", "glide_base", "glide_upsample")
LIKE_ANOTHER = ("adm_lsun_bedroom", "glide_base_inpaint")


@pytest.mark.parametrize("name", [n for n in FLOPS if n not in (*RUNS, *LIKE_ANOTHER)])
def test_a_forward_pass(name: str) -> None:
    record, fake = manifest(name), FakeTensorMode(allow_non_fake_inputs=True)
    copied, given = _copy(fake, (network(record), fed(record)))
    with torch.no_grad():
        _, flops, _ = _measured(fake, partial(copied, **given))
    assert flops == FLOPS[name] - (SPARED if name.endswith("classifier") else 0)


def loaded(backend: DiffusionBackend) -> LoadedBackend:
    return LoadedBackend(backend, Origin(component="released"))


def test_a_run_of_adm() -> None:
    record = manifest("adm_256x256_diffusion_uncond")
    process = Process(schedule="linear", timesteps=1000, variance="learned_range")
    backend = loaded(AdmBackend(AdmStage(network(record), process, size(record))))
    found = estimate(plan(backend, [], 3, Sampling(steps=5)))
    assert found.stages["base"].forward == FLOPS["adm_256x256_diffusion_uncond"]
    assert found.stages["base"].before == 0
    assert found.flops == 3 * 5 * FLOPS["adm_256x256_diffusion_uncond"]
    assert found.weights == 4 * record["parameter_count"]


def test_a_run_of_glide() -> None:
    records = [manifest("glide_base"), manifest("glide_upsample")]
    base, upsampler = map(network, records)
    assert isinstance(base, TextUNet)
    assert isinstance(upsampler, TextUNet)
    said = [
        StageArchitecture(
            **stated(record["official_class"], size(record), recipe={"respacing": "27"})
        )
        for record in records
    ]
    length = base.text_ctx

    def tokens(prompts: list[str]) -> Texts:  # the real ones take a while to read
        mask = torch.tensor([[bool(prompt)] * length for prompt in prompts])
        return Texts(torch.zeros(len(prompts), length, dtype=torch.int64), mask)

    def told(cfg: float, stage: str) -> Any:
        first, second = BaseStage(base, said[0], cfg), UpsamplerStage(upsampler, said[1])
        backend = loaded(GlideBackend(first, second, cast("PromptTokens", tokens)))
        return estimate(plan(backend, [], 2, Sampling(steps=10, prompt="a hedgehog", stage=stage)))

    plain, guided = told(1.0, "upsampler"), told(3.0, "base")
    for name, recorded in (("base", "glide_base"), ("upsampler", "glide_upsample")):
        # The published network reads the text for every image; here once for all steps.
        look = plain.stages[name]
        assert look.before > 0
        assert look.before + look.forward == FLOPS[recorded]
    assert guided.stages["base"].forward == 2 * plain.stages["base"].forward
    assert guided.stages["base"].before == 2 * plain.stages["base"].before
    assert plain.flops == 2 * sum(
        look.before + steps * look.forward
        for look, steps in zip(plain.stages.values(), (10, 27), strict=True)
    )
