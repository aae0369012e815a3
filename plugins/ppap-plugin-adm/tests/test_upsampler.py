"""The second stage: what it is told, how it is sampled, and how it is joined to a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ppap_framework as ppap
from ppap_framework.checkpoints import (
    Checkpoint,
    join_checkpoints,
    open_checkpoint,
    save_checkpoint,
)
from ppap_framework.components import CascadedStage, CascadeSampling
from ppap_framework.diffusion import NoiseSource, Process, ddim_step, space_timesteps, trajectory
from ppap_framework.errors import AssetError
from ppap_plugin_adm import build, released
from ppap_plugin_adm.backend import AdmBackend, make_adm

UNET, UPSAMPLER = "guided_diffusion.unet.UNetModel", "guided_diffusion.unet.SuperResModel"
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
    "num_classes": 3,
    "use_scale_shift_norm": True,
}
BASE: dict[str, Any] = {
    "official_class": UNET,
    "config": CONFIG,
    "process": {"schedule": "cosine", "timesteps": 100},
}
LARGE: dict[str, Any] = {
    "official_class": UPSAMPLER,
    "config": CONFIG | {"image_size": 16},
    "process": {"schedule": "linear", "timesteps": 100},
    "recipe": {"respacing": "4", "eta": 1.0},
}


def network(stated: dict[str, Any], seed: int) -> nn.Module:
    """Without zeroed layers."""
    generator = torch.Generator().manual_seed(seed)
    made = build(stated["official_class"], stated["config"])
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return made.eval()


def joined(folder: Path, large: dict[str, Any] = LARGE, base: dict[str, Any] = BASE) -> Checkpoint:
    state = dict(network(base, 0).state_dict())
    state |= {f"upsampler.{name}": each for name, each in network(large, 1).state_dict().items()}
    save_checkpoint(folder / "both.safetensors", state, base | {"upsampler": large})
    return open_checkpoint(folder / "both.safetensors")


@pytest.fixture
def backend(tmp_path: Path) -> AdmBackend:
    return make_adm(None, joined(tmp_path))


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def said(x_t: Tensor, t: Tensor, low_res: Tensor, y: Tensor) -> Tensor:
    """What the published network says: its input is x_t and, behind it, the image enlarged."""
    bare = network(LARGE, 1)
    large = F.interpolate(low_res, (16, 16), mode="bilinear", align_corners=False)
    with torch.no_grad():
        output: Tensor = bare.denoise(torch.cat([x_t, large], 1), bare.embed(t, y))
    return output


def test_it_is_told_the_image_in_8_bits_and_the_class(backend: AdmBackend) -> None:
    stage, classes = backend.stages[1], torch.tensor([2, 0, 1])
    assert isinstance(stage, CascadedStage)
    assert (stage.name, stage.image_shape, stage.variance) == (
        "upsampler",
        (3, 16, 16),
        "learned_range",
    )
    told = stage.conditioned(classes, images())
    levels = torch.floor((images() + 1) * 127.5)
    torch.testing.assert_close(told.low_res, levels / 127.5 - 1)
    x_t, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 40, 99])
    prediction = stage.denoise(x_t, t, told)
    expected = said(x_t, t, told.low_res, classes)
    torch.testing.assert_close(prediction.eps, expected[:, :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prediction.variance, expected[:, 3:], atol=1e-5, rtol=1e-4)
    assert (expected - said(x_t, t, told.low_res, classes.flip(0))).abs().max() > 1e-3


def test_it_goes_on_from_the_guided_base(backend: AdmBackend, tmp_path: Path) -> None:
    how: dict[str, Any] = {"num": 2, "steps": 3, "seed": 4, "prompt": ["class 2", "class 0"]}
    drawn = ppap.sample(backend, **how)
    base = drawn.guided.earlier["base"]
    save_checkpoint(tmp_path / "base.safetensors", network(BASE, 0).state_dict(), BASE)
    alone = make_adm(None, open_checkpoint(tmp_path / "base.safetensors"))
    assert torch.equal(base, ppap.sample(alone, **how).images)
    stage, noise = backend.stages[1], NoiseSource(4, 0, stage=1)
    assert isinstance(stage, CascadedStage)
    process = Process(stage.schedule, space_timesteps(100, "4"), stage.variance)
    condition = stage.conditioned(torch.tensor([2, 0]), base)
    *_, (last, _) = trajectory(
        *(stage, process, noise((2, 3, 16, 16)), noise),
        condition=condition,
        step=lambda *given: ddim_step(*given, eta=1.0),
    )
    assert torch.equal(drawn.images, last.clamp(-1, 1))


def test_the_published_recipe_is_the_default(tmp_path: Path) -> None:
    large = {**LARGE, "process": {"schedule": "linear", "timesteps": 1000}}
    del large["recipe"]
    stage = make_adm(None, joined(tmp_path, large)).stages[1]
    assert isinstance(stage, CascadedStage)
    assert stage.sampling == CascadeSampling(respacing="250", eta=1.0, temperature=1.0)


def test_one_without_classes_is_not_told_any(tmp_path: Path) -> None:
    large = LARGE | {"config": LARGE["config"] | {"num_classes": None}}
    drawn = ppap.sample(make_adm(None, joined(tmp_path, large)), num=1, steps=2, prompt="class 1")
    assert drawn.images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"config": CONFIG}, "draws 8 pixels a side, its upsampler 8"),
        ({"config": LARGE["config"] | {"num_classes": 4}}, "knows 3 classes, the other 4"),
        ({"official_class": UNET}, "'official_class' must be in"),
        ({"recipe": {"respacing": "4", "eta": 2.0}}, "'eta' must be <= 1.0"),
        ({"recipe": "fast"}, "'recipe' must be an object"),
        ({"process": {"schedule": "odd", "timesteps": 9}}, "'odd'"),
        ({"process": LARGE["process"] | {"variance": "fixed_small"}}, "gives 6"),
        ({"config": {**LARGE["config"], "colour": 1}}, "no argument colour"),
    ],
)
def test_upsamplers_that_do_not_fit(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    honest = joined(tmp_path)
    stated = BASE | {"upsampler": LARGE | change}
    if "classes" in expected:  # whose table has another size
        honest = joined(tmp_path, LARGE | change)
    save_checkpoint(tmp_path / "odd.safetensors", honest.state_dict(), stated)
    with pytest.raises(AssetError) as caught:
        make_adm(None, open_checkpoint(tmp_path / "odd.safetensors"))
    assert expected in caught.value.message
    assert "'odd.safetensors'" in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", ["adm-64+adm-64-to-256", "adm-128+adm-128-to-512"])
def test_published_files_are_joined(tmp_path: Path, pair: str, backend: AdmBackend) -> None:
    cards = {card.name: card for card in released.cards()}
    opened = []
    for name, small, seed in zip(pair.split("+"), (BASE, LARGE), (0, 1), strict=True):
        state, card = network(small, seed).state_dict(), cards[name]
        torch.save(dict(state), tmp_path / f"{name}.pt")
        stated = {"upsampler": small} if card.prefix else small
        assert set(card.architecture) == set(stated)
        like = attrs.evolve(card, architecture=stated)
        opened.append(open_checkpoint(tmp_path / f"{name}.pt", like=like))
    assert cards[name].joined == pair
    made = make_adm(None, join_checkpoints(opened))
    how: dict[str, Any] = {"num": 1, "steps": 2, "prompt": "class 1"}
    drawn = [ppap.sample(each, **how).images for each in (made, backend)]
    torch.testing.assert_close(*drawn, atol=1 / 255, rtol=0)
