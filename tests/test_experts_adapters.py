"""The adapters that plugins supply, as experts: from training through a file to guidance."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from experts_toy import SCHEDULE, Backend, read
from torch import nn

from ppap_framework.components import Target
from ppap_framework.diffusion import Process, timesteps_for
from ppap_framework.experts import (
    AdapterConfig,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    choose_experts,
    describe,
    guide_sha256,
    installed_adapter,
    keep_bundle,
    load_bundle,
    save_bundle,
)
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel, linear_schedule
from ppap_framework.run import FunctionLoss, ModuleGuide

RECIPES = {
    "lora+bias": [
        AdapterConfig(name="lora", options={"rank": 2, "targets": ["*conv*", "fc"]}),
        AdapterConfig(name="bias", options={}),
    ],
    "full": [AdapterConfig(name="full", options={})],
}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = timm.create_model("test_resnet.r160_in1k", num_classes=7)
    return made.eval().requires_grad_(False)


def attach(model: ModuleGuide, ranges: NoiseRanges, configs: list[AdapterConfig]) -> ExpertSet:
    return ExpertSet(model, ranges, {c.name: installed_adapter(c) for c in configs})


@pytest.mark.parametrize("recipe", RECIPES)
def test_trained_saved_found_and_guiding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    configs = RECIPES[recipe]
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    model, backend = ModuleGuide(network(), size=32), Backend()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    guide = Identity(component="ModuleGuide", checkpoint=None, sha256=guide_sha256(model))
    experts = attach(model, NoiseRanges.equal(SCHEDULE, 3), configs)
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    level = NoiseLevel(SCHEDULE.log_snr[torch.tensor([0, 99, 50, 20, 70, 40])])
    with torch.no_grad():
        untrained = read(experts, x, level)
        experts.activate(None)
        torch.testing.assert_close(untrained, model(x))  # at first every expert is no change
    for index in range(3):
        optimizer = torch.optim.SGD(experts.parameters(index), lr=0.1)
        with experts.training(index):
            model.network.train()
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(x), torch.full((6,), index)).backward()
                optimizer.step()
            model.network.eval()
    with torch.no_grad():
        wanted = read(experts, x, level)
    assert not torch.allclose(wanted, untrained)
    info = describe(
        experts,
        backend.stages[0].schedule,
        backend.stages[0].image_shape[1:],
        guide=guide,
        backend=Identity(component="toy", checkpoint=None, sha256=backend_sha256(backend)),
        adapters=configs,
        recipe={},
        seed=0,
    )
    path = tmp_path / "small.experts.safetensors"
    save_bundle(path, experts, info)
    experts.detach()
    now = model.network.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())

    keep_bundle(path)
    fresh = ModuleGuide(network(), size=32)
    assert choose_experts("auto", "toy", ModuleGuide(network(1), size=32), backend) is None
    found = choose_experts("auto", "toy", fresh, backend)
    assert found is not None
    loaded = load_bundle(found.path, fresh, backend)
    with torch.no_grad():
        torch.testing.assert_close(read(loaded, x, level), wanted, rtol=0, atol=1e-5)
        one_by_one = [
            read(loaded, x[i : i + 1], NoiseLevel(level.log_snr[i : i + 1])) for i in range(6)
        ]
        torch.testing.assert_close(torch.cat(one_by_one), wanted, rtol=0, atol=1e-5)
    again = tmp_path / "again.experts.safetensors"
    save_bundle(again, loaded, info)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_guided_step_costs_what_the_bare_network_costs() -> None:
    schedule = linear_schedule()
    process = Process(schedule, timesteps_for(1000, 25))
    resnet = timm.create_model("resnet50").eval().requires_grad_(False)
    model = ModuleGuide(resnet)
    configs = [AdapterConfig(name=name, options={}) for name in ("lora", "bias")]
    experts = attach(model, NoiseRanges.equal(schedule, 5), configs)
    bare = Guide(
        name="bare",
        model=model,
        loss=FunctionLoss(lambda p, t: F.cross_entropy(p, t.expand(len(p)), reduction="none")),
        target=Target(value=torch.tensor([1]), label="one"),
    )
    guide = Guide(name="experts", model=model, loss=bare.loss, target=bare.target, experts=experts)
    x = torch.randn(4, 3, 64, 64)

    def seconds(guide: Guide, step: int) -> float:
        start = time.perf_counter()
        guide.gradient(x, process.level(step, len(x)))
        return time.perf_counter() - start

    seconds(guide, 24)
    ratios = []
    for step in reversed(range(25)):
        guide.at(process.level(step, len(x)))  # five times in 25 steps this merges
        first = [seconds(bare, step), seconds(guide, step)]
        second = [seconds(guide, step), seconds(bare, step)]  # in turn, for a machine that drifts
        ratios.append((first[1] + second[0]) / (first[0] + second[1]))
    assert statistics.median(ratios) < 1.03
