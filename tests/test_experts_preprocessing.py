"""Experts that are shown images in another way than the network they were made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from experts_toy import SCHEDULE, Backend, Shift, TinyGuide, Told, make_adapter, read, trained
from torch import Tensor

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    BundleInfo,
    ExpertSet,
    Identity,
    InputConvention,
    NoiseRanges,
    describe,
    has_experts,
    load_bundle,
    read_bundle_info,
    save_bundle,
)
from ppap_framework.noise import NoiseLevel
from ppap_framework.preprocessing import Preprocessing

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
    experts = load_bundle(path, model, Backend(), make_adapter=make_adapter)
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
    experts = load_bundle(path, told(), make_adapter=make_adapter)
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
        load_bundle(path, model, make_adapter=make_adapter)
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
        assert len(load_bundle(path, model, Backend(seed), make_adapter=make_adapter)) == 3
    assert "unknown weights" in str(read_bundle_info(path).backend)
    with pytest.raises(AssetError, match="resolution: "):
        load_bundle(path, TinyGuide(), Backend(size=16), make_adapter=make_adapter)


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
