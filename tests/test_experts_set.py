"""One network, several experts: the right one looks, fed as it was told, and leaves no trace."""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import timm
import torch
import torch.nn.functional as F
from experts_toy import (
    SCHEDULE,
    Backend,
    Shift,
    TinyGuide,
    Told,
    experts_of,
    load,
    read,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppap_framework.components import Target, TaskLoss
from ppap_framework.diffusion import Process, timesteps_for
from ppap_framework.errors import AssetError, PluginError, UsageError
from ppap_framework.experts import (
    AdapterConfig,
    BundleInfo,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    choose_experts,
    describe,
    guide_sha256,
    has_experts,
    installed_adapter,
    keep_bundle,
    load_bundle,
    read_bundle_info,
    save_bundle,
)
from ppap_framework.experts.identity import InputConvention
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel, linear_schedule
from ppap_framework.preprocessing import Preprocessing
from ppap_framework.run import FunctionLoss, ModuleGuide


class CrossEntropy(TaskLoss):
    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        logits = prediction["logits"] if isinstance(prediction, dict) else prediction
        return F.cross_entropy(logits, target.expand(len(logits)), reduction="none")


def guide_of(model: TinyGuide, experts: ExpertSet | None = None) -> Guide:
    target = Target(value=torch.tensor([1]), label="one")
    return Guide(name="toy", model=model, loss=CrossEntropy(), target=target, experts=experts)


def shifted(model: TinyGuide, experts: ExpertSet, index: int | None) -> nn.Module:
    """The oracle: a network of its own for an expert, made before anything is merged."""
    network = copy.deepcopy(model.network)
    if index is not None:
        adapter = experts.adapters["shift"]
        assert isinstance(adapter, Shift)
        for name, bias in network.named_parameters():
            if name in adapter.shifts[index]:
                bias.data = bias.data + adapter.shifts[index][name].data
    return network.requires_grad_(False)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(network: nn.Module, before: dict[str, Tensor]) -> bool:
    now = network.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in now)


def images(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def levels(timesteps: list[int | None]) -> NoiseLevel:
    values = [math.inf if t is None else SCHEDULE.log_snr[t].item() for t in timesteps]
    return NoiseLevel(torch.tensor(values, dtype=torch.float64))


def owner(t: int | None, number: int = 3) -> int | None:
    return None if t is None else next(i for i in range(number) if t < (i + 1) * 100 // number)


def test_a_shared_level_merges_its_owner_and_costs_the_model_itself() -> None:
    model = TinyGuide()
    experts = experts_of(model)
    oracles = {index: shifted(model, experts, index) for index in (None, 0, 1, 2)}
    adapter = experts.adapters["shift"]
    x = images(4)
    for t in [99, 99, 70, 40, 33, 32, 0, None, 50]:
        level = levels([t] * 4)
        look = experts.at(level)
        assert look is model
        assert experts.active == owner(t)
        with torch.no_grad():
            torch.testing.assert_close(look(x, level), oracles[owner(t)](x))
    assert adapter.merges == 5  # 99 and 99 and 70; 40 and 33; 32 and 0; clean; 50


@settings(max_examples=40)
@given(st.lists(st.none() | st.integers(0, 99), min_size=1, max_size=9))
def test_mixed_levels_are_as_one_by_one(timesteps: list[int | None]) -> None:
    model = TinyGuide()
    experts = experts_of(model)
    oracles = {index: shifted(model, experts, index) for index in (None, 0, 1, 2)}
    x = images(len(timesteps))
    with torch.no_grad():
        together = read(experts, x, levels(timesteps))
        alone = torch.cat([oracles[owner(t)](x[i : i + 1]) for i, t in enumerate(timesteps)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_nested_predictions_are_put_together_and_others_named() -> None:
    model, plain = TinyGuide(nested="mapping"), TinyGuide()
    x, level = images(5), levels([80, 3, None, 50, 3])
    with torch.no_grad():
        found = read(experts_of(model), x, level)
        logits = read(experts_of(plain), x, level)
    assert isinstance(found, dict)
    exp, (pair, nothing) = found["parts"]
    assert isinstance(found["parts"], list)
    assert nothing is None
    for part, wanted in ((found["logits"], logits), (exp, logits.exp()), (pair, logits[:, :2])):
        torch.testing.assert_close(part, wanted)
    experts = experts_of(TinyGuide(nested="record"))
    assert read(experts, images(2), levels([1, 2])).logits.shape == (2, 5)
    with pytest.raises(PluginError, match="Answer"):
        read(experts, images(2), levels([1, 99]))
    assert read(experts_of(TinyGuide()), images(2)[:0], levels([])).shape == (0, 5)


@pytest.mark.parametrize("timesteps", [[80] * 4, [80, 3, 50, 3], [3, 80, None, 50], [None] * 4])
def test_gradients_are_those_of_each_owner(timesteps: list[int | None]) -> None:
    model = TinyGuide()
    experts = experts_of(model, ending="")  # weights, too: a graph remembers those
    oracles = {index: shifted(model, experts, index) for index in (None, 0, 1, 2)}
    x = images(4)
    found = guide_of(model, experts).gradient(x, levels(timesteps))
    for i, t in enumerate(timesteps):
        own = x[i : i + 1].clone().requires_grad_()
        energy = F.cross_entropy(oracles[owner(t)](own), torch.tensor([1]))
        (wanted,) = torch.autograd.grad(energy, own)
        torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-4, atol=1e-6)


def test_a_stale_graph_is_refused_and_never_wrong() -> None:
    # Biases are no part of a graph; weights are.
    experts = experts_of(TinyGuide(), ending="weight")
    x = images(2).requires_grad_()
    old = read(experts, x, levels([90, 90]))
    read(experts, x, levels([1, 1]))
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(old.sum(), x)


def test_clean_images_through_the_denoiser_are_the_untouched_network_s() -> None:
    model = TinyGuide()
    bare, guide, clean = (
        guide_of(TinyGuide()),
        guide_of(model, experts_of(model)),
        levels([None] * 2),
    )
    assert torch.equal(guide.gradient(images(2), clean), bare.gradient(images(2), clean))
    with pytest.raises(UsageError, match="of another model"):
        guide_of(TinyGuide(), experts_of(TinyGuide()))


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["at", "mixed", "train", "none"]), max_size=8), st.randoms())
def test_the_network_is_left_as_it_was(actions: list[str], random: Any) -> None:
    model = TinyGuide()
    before = snapshot(model.network)
    experts = experts_of(model)
    for action in actions:
        t = [random.randrange(100) for _ in range(3)]
        if action == "at":
            experts.at(levels(t[:1] * 3))
        elif action == "mixed":
            read(experts, images(3), levels([*t[:2], None]))
        elif action == "train":
            index = owner(t[0])
            assert index is not None
            with experts.training(index):
                assert experts.active is None
                loss = model(images(2)).square().mean()
                gradients = torch.autograd.grad(loss, list(experts.parameters(index)))
            with torch.no_grad():
                for parameter, gradient in zip(experts.parameters(index), gradients, strict=True):
                    parameter -= gradient
        else:
            experts.activate(None)
            assert same(model.network, before)
    experts.detach()
    assert same(model.network, before)
    assert not has_experts(model.network)


def test_training_one_expert_leaves_the_others_alone() -> None:
    model = TinyGuide()
    experts = experts_of(model)
    others = {k: v.clone() for k, v in experts.state_dict().items() if "/1." not in k}
    experts.activate(1)
    with experts.training(1):
        model(images(2)).sum().backward()
    optimizer = torch.optim.SGD(experts.parameters(1), 0.1)
    old = [parameter.detach().clone() for parameter in experts.parameters(1)]
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(experts.parameters(1), old, strict=True)]
    assert any(moved)
    now = experts.state_dict()
    assert all(torch.equal(now[key], value) for key, value in others.items())
    # What is merged next is what was learned.
    level = levels([50] * 2)
    with torch.no_grad():
        oracle = shifted(model, experts, 1)
        torch.testing.assert_close(experts.at(level)(images(2), level), oracle(images(2)))


def test_several_adapters_and_their_order() -> None:
    model = TinyGuide()
    first, second = Shift("0.bias"), Shift("5.bias")
    experts = ExpertSet(model, NoiseRanges((0.0,)), {"first": first, "second": second})
    assert set(experts.state_dict()) == {
        "first/0.0.bias", "first/1.0.bias", "second/0.5.bias", "second/1.5.bias"
    }  # fmt: skip
    assert [p.shape for p in experts.parameters(0)] == [(4,), (5,)]
    assert experts.network_parameters == sum(p.numel() for p in TinyGuide().network.parameters())


def test_state_comes_back() -> None:
    experts, fresh = experts_of(TinyGuide(), seed=1), experts_of(TinyGuide(), seed=2)
    x, level = images(3), levels([1, 50, 99])
    fresh.at(levels([1]))
    fresh.load_state_dict(experts.state_dict())
    assert fresh.active is None
    with torch.no_grad():
        assert torch.equal(read(fresh, x, level), read(experts, x, level))
    with pytest.raises(AssetError, match="'lora/x'"):
        fresh.load_state_dict({"lora/x": torch.ones(1)})


def test_what_a_set_refuses() -> None:
    model = TinyGuide()
    ranges = NoiseRanges(())
    with pytest.raises(ValueError, match="need an adapter"):
        ExpertSet(model, ranges, {})
    before = snapshot(model.network)
    first = Shift()
    with pytest.raises(UsageError, match="no bias"):
        ExpertSet(model, ranges, {"shift": first, "none": Shift("nothing")})
    assert first.merges == 1  # detached again
    assert same(model.network, before)
    experts = ExpertSet(model, ranges, {"shift": Shift()})
    with pytest.raises(ValueError, match="has experts already"):
        ExpertSet(model, ranges, {"shift": Shift()})
    for index in (1, -1):
        with pytest.raises(IndexError):
            experts.activate(index)
    experts.detach()
    ExpertSet(model, ranges, {"shift": Shift()})


def test_an_interrupted_merge_is_repeated() -> None:
    model = TinyGuide()
    experts = experts_of(model)
    adapter = experts.adapters["shift"]
    assert isinstance(adapter, Shift)
    whole = adapter.activate

    def interrupted(index: int | None) -> None:
        whole(index)
        raise KeyboardInterrupt

    experts.activate(0)
    adapter.activate = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        experts.activate(1)
    adapter.activate = whole  # type: ignore[method-assign]
    experts.activate(0)
    level = levels([0])
    with torch.no_grad():
        oracle = experts_of(TinyGuide())
        assert torch.equal(model(images(1), level), oracle.at(level)(images(1), level))


RAW = Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


def told() -> Told:
    own = attrs.evolve(RAW, mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.1))
    return Told(TinyGuide().network, own).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two experts of the toy that are shown raw images, shifted at random."""
    path = tmp_path / "toy.experts.safetensors"
    model = told()
    plain, info = trained(model, Backend(), number=2)
    shifts = plain.state_dict()
    plain.detach()
    experts = ExpertSet(model, plain.ranges, {"shift": Shift()}, RAW)
    experts.load_state_dict(shifts)
    kept = {name: getattr(info, name) for name in ("guide", "backend", "adapters")}
    info = describe(experts, SCHEDULE, (8, 8), **kept, recipe={}, seed=0)
    save_bundle(path, experts, info)
    return path


def test_experts_are_fed_so_and_the_untouched_network_as_ever(path: Path) -> None:
    model = told()
    experts = load(path, model, Backend())
    images = torch.randn(3, 3, 8, 8)
    levels = [math.inf, SCHEDULE.log_snr[0].item(), SCHEDULE.log_snr[-1].item()]
    level = NoiseLevel(torch.tensor(levels, dtype=torch.float64))
    with torch.no_grad():
        mixed = read(experts, images, level)
        for row, (index, fed) in enumerate([(None, model), (0, None), (1, None)]):
            experts.activate(index)
            shown = fed(images) if fed else model.network(images)
            torch.testing.assert_close(mixed[row], shown[row])
            alone = experts.at(NoiseLevel(level.log_snr[row : row + 1]))(
                images[row : row + 1], level
            )
            torch.testing.assert_close(alone[0], shown[row])
    assert not torch.allclose(model.network(images), model(images))


def test_mixed_levels_are_differentiable(path: Path) -> None:
    experts = load(path, told())
    x = torch.randn(2, 3, 8, 8)
    level = NoiseLevel(SCHEDULE.log_snr[torch.tensor([0, 99])])

    def gradient(images: Tensor, level: NoiseLevel) -> Tensor:
        images = images.clone().requires_grad_()
        read(experts, images, level).square().sum().backward()
        assert images.grad is not None
        return images.grad

    alone = [gradient(x[i : i + 1], NoiseLevel(level.log_snr[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(gradient(x, level), torch.cat(alone))


def test_what_is_measured_is_what_experts_are_fed(path: Path) -> None:
    info = read_bundle_info(path)
    assert info.preprocessing == RAW
    assert info.input == InputConvention((3, 8, 8), (-1, -1, -1), (1, 1, 1))
    _, other = trained(TinyGuide(), Backend())
    assert "preprocessing" not in json.loads(other.to_json())  # as before there was any
    for described in (info, other):
        assert BundleInfo.from_json(described.to_json()) == described


def test_a_guide_that_cannot_be_told(path: Path) -> None:
    model = TinyGuide()
    with pytest.raises(AssetError, match=r"input: .*TinyGuide shows them in its own way") as caught:
        load(path, model)
    assert "\n" not in str(caught.value)
    assert not has_experts(model.network)
    with pytest.raises(UsageError, match="TinyGuide") as refused:
        ExpertSet(model, NoiseRanges(()), {"shift": Shift()}, RAW)
    assert refused.value.hint


def test_an_unknown_backend_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "toy.experts.safetensors"
    experts, info = trained(TinyGuide(), Backend())
    with pytest.raises(ValueError, match="guide: sha256 must be known"):
        attrs.evolve(info, guide=attrs.evolve(info.guide, sha256=None))
    unknown = Identity(component="toy", checkpoint=None, sha256=None)
    save_bundle(path, experts, attrs.evolve(info, backend=unknown))
    experts.detach()
    for seed in (0, 1):
        model = TinyGuide()
        assert len(load(path, model, Backend(seed))) == 3
    assert "unknown weights" in str(read_bundle_info(path).backend)
    with pytest.raises(AssetError, match="resolution: "):
        load(path, TinyGuide(), Backend(size=16))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"size": size} for size in (0, 32.0, True)),
        *({"mean": mean} for mean in ((0.5, 0.5), (0.5, 0.5, math.nan), "abc")),
        {"std": (0.5, 0.5, 0)},
        {"interpolation": "nearest"},
        {"antialias": 1},
    ],
)
def test_preprocessings_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        attrs.evolve(RAW, **wrong)


def test_a_bundle_says_what_is_wrong_with_it(path: Path) -> None:
    said = json.loads(read_bundle_info(path).to_json())
    said["preprocessing"] |= {"std": [1, 1, 0], "size": "large"}
    with pytest.raises(ValueError, match=r"preprocessing: .*size.*; .*std"):
        BundleInfo.from_json(json.dumps(said))


RECIPES = {
    "lora+bias": [
        AdapterConfig(name="lora", options={"rank": 2, "targets": ["*conv*", "fc"]}),
        AdapterConfig(name="bias", options={}),
    ],
    "full": [AdapterConfig(name="full", options={})],
}


def resnet(seed: int = 0) -> nn.Module:
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
    model, backend = ModuleGuide(resnet(), size=32), Backend()
    before = snapshot(model.network)
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
    assert same(model.network, before)

    keep_bundle(path)
    fresh = ModuleGuide(resnet(), size=32)
    assert choose_experts("auto", "toy", ModuleGuide(resnet(1), size=32), backend) is None
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
    bare_network = timm.create_model("resnet50").eval().requires_grad_(False)
    model = ModuleGuide(bare_network)
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
