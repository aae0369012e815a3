"""The noised CLIP as a guide: its text, its time, its energy, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from glide_files import CLIP_CONFIG, clip, letters
from PIL import Image
from torch import Tensor

from ppap_framework.components import TargetInput
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.noise import NoiseLevel, cosine_schedule, linear_schedule
from ppap_plugin_glide.guider import NoisedClipGuide, make_clip
from ppap_plugin_glide.loss import ClipSimilarity
from ppap_plugin_glide.tokens import END, START


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> NoisedClipGuide:
    return make_clip(None, clip(tmp_path_factory.mktemp("clip")))


def images(size: int = 8) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def text(words: str) -> TargetInput:
    return TargetInput(text=words, source=words)


def test_the_gradient_is_that_of_the_scaled_cosine(guide: NoisedClipGuide) -> None:
    """Against the encoder itself, whose parity is tested elsewhere."""
    x = images().requires_grad_()
    level = cosine_schedule(100).level(torch.tensor([0, 40, 99]))
    target = guide.target(text("a cat"))
    energy = ClipSimilarity().energy(guide(x, level), target.value)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    encoder: Any = guide.network
    seen = encoder((x + 1.0) * 127.5, torch.tensor([0, 40, 99]))
    cosine = torch.nn.functional.cosine_similarity(seen, target.value.expand(3, -1))
    (expected,) = torch.autograd.grad(-100.0 * cosine.sum(), x)
    torch.testing.assert_close(energy, -100.0 * cosine, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    metrics = ClipSimilarity().metrics(guide(x, level), target.value)
    torch.testing.assert_close(metrics["cosine"], cosine, rtol=1e-4, atol=1e-5)


def test_it_is_told_the_nearest_timestep_of_its_own_schedule(guide: NoisedClipGuide) -> None:
    theirs = linear_schedule(1000).level(torch.tensor([0, 300, 999]))
    ours = cosine_schedule(100)
    nearest = (ours.log_snr[None] - theirs.log_snr[:, None]).abs().argmin(1)
    expected = guide(images(), ours.level(nearest))
    torch.testing.assert_close(guide(images(), theirs), expected)
    clean = guide(images())
    torch.testing.assert_close(clean, guide(images(), ours.level(torch.zeros(3, dtype=int))))
    infinite = NoiseLevel(torch.full((3,), torch.inf, dtype=torch.float64))
    torch.testing.assert_close(clean, guide(images(), infinite))


def test_each_image_by_itself_at_any_size(guide: NoisedClipGuide) -> None:
    level = cosine_schedule(100).level(torch.tensor([0, 40, 99]))
    for size in (8, 4, 20):
        x = images(size)
        together = guide(x, level)
        assert together.shape == (3, 12)
        torch.testing.assert_close(together.norm(dim=1), torch.full((3,), 100.0))
        alone = [guide(x[[i]], NoiseLevel(level.log_snr[[i]])) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-3)
    assert guide.render(together, x) is x
    assert guide.describe(together) == []


def test_targets_are_texts(guide: NoisedClipGuide) -> None:
    target = guide.target(text("  a Cat "))
    assert target.label == "a Cat"
    torch.testing.assert_close(target.value.norm(dim=1), torch.ones(1))
    torch.testing.assert_close(target.value, guide.target(text("a cat")).value)
    assert not torch.allclose(target.value, guide.target(text("a dog")).value)
    # Eight letters fit between start and end.
    torch.testing.assert_close(
        guide.target(text("a" * 10_000)).value, guide.target(text("a" * 8)).value
    )
    assert guide.target(text("😀\x00")).value.isfinite().all()


@pytest.mark.parametrize(
    "given",
    [
        text(" \n"),
        TargetInput(image=Image.new("RGB", (4, 4)), source="a.png"),
        TargetInput(array=torch.zeros(3), source="array"),
    ],
)
def test_anything_else_is_refused(guide: NoisedClipGuide, given: TargetInput) -> None:
    with pytest.raises(UsageError, match="is no text"):
        guide.target(given)


def test_transfer_is_one_minus_the_cosine() -> None:
    teacher = torch.eye(3)
    student = torch.stack([teacher[0] * 5.0, teacher[0], -teacher[2]])
    torch.testing.assert_close(
        ClipSimilarity().transfer(student, teacher), torch.tensor([0.0, 1.0, 2.0])
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"official_class": "CLIP"}, "'official_class' must be in"),
        ({"tokenizer": letters(END)}, f"does not know both {START} and {END}"),
        (
            {"tokenizer": letters(START, *(f"<{i}>" for i in range(300)), END)},
            "and the network knows 260",
        ),
        ({"config": CLIP_CONFIG | {"patch_size": 3}}, "does not divide into patches"),
        ({"config": CLIP_CONFIG | {"beta_schedule": "odd"}}, "'odd'"),
        ({"config": CLIP_CONFIG | {"n_embd": 16}}, "does not fit"),
    ],
)
def test_checkpoints_that_are_none(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(AssetError) as caught:
        make_clip(None, clip(tmp_path, **change))
    assert expected in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)
