"""DeepFloyd IF in two stages: guides steer the first, the second enlarges its images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_pipelines import PROMPTS, SIZE, deepfloyd, deepfloyd_upsampler
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.components import CascadeSampling
from ppap_framework.diffusion import NoiseSource
from ppap_framework.errors import AssetError
from ppap_framework.run import Sampling, plan
from ppap_framework.run.estimate import estimate


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    deepfloyd().save_pretrained(root / "one")
    deepfloyd_upsampler().save_pretrained(root / "two")
    return root / "one", root / "two"


@pytest.fixture
def cascade(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both stages; the second one takes four DDIM steps."""
    backend = ppap.backend("diffusers", checkpoint="+".join(map(str, folders)))
    monkeypatch.setattr(backend.stages[1], "sampling", CascadeSampling(respacing="ddim4"))
    return backend


@pytest.mark.parametrize("prompt", [PROMPTS, None], ids=["guidance", "no prompt"])
def test_the_second_stage_draws_what_its_pipeline_does(cascade: Any, prompt: Any) -> None:
    how: dict[str, Any] = {"num": 2, "steps": 4, "sampler": "ddim", "prompt": prompt}
    drawn = ppap.sample(cascade, **how)
    small, large = drawn.guided.earlier["base"], drawn.images
    assert large.shape == (2, 3, 2 * SIZE, 2 * SIZE)
    pipe, first = deepfloyd_upsampler(), deepfloyd()
    own, other = first.encode_prompt(prompt or ["", ""], negative_prompt=None)
    noise = NoiseSource(0, stage=1)((2, 3, 2 * SIZE, 2 * SIZE))
    beside = torch.randn(3, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    draws: Iterator[torch.Tensor] = iter([noise, beside.expand(2, -1, -1, -1)])
    module = "diffusers.pipelines.deepfloyd_if.pipeline_if_superresolution.randn_tensor"
    step = partial(pipe.scheduler.step, use_clipped_model_output=True)
    with (
        mock.patch(module, side_effect=lambda *_, **__: next(draws)),
        mock.patch.object(pipe.scheduler, "step", step),
    ):
        theirs = pipe(
            image=small,
            prompt_embeds=own,
            negative_prompt_embeds=other,
            num_inference_steps=4,
            guidance_scale=4.0 if prompt else 1.0,
            output_type="pt",
        ).images
    assert theirs.std() > 0.01
    torch.testing.assert_close(large, theirs, atol=2e-4, rtol=0.0)


def test_guides_steer_the_first_stage(cascade: Any) -> None:
    guide = guide_of(
        lambda x, _: x.mean((1, 2, 3)), lambda p, t: (p - t).square(), torch.ones(1), scale=30.0
    )
    how: dict[str, Any] = {"num": 2, "steps": 3, "prompt": PROMPTS[0]}
    result = ppap.sample(cascade, [guide], compare=True, **how)
    gained = result.guided.earlier["base"] - result.unguided.earlier["base"]
    assert gained.mean((1, 2, 3)).gt(1e-3).all()
    assert (result.images - result.unguided.images).abs().mean((1, 2, 3)).gt(1e-3).all()
    alone = ppap.sample(cascade, [guide], num=1, steps=3, prompt=PROMPTS[0])
    torch.testing.assert_close(alone.images, result.images[:1], atol=1e-5, rtol=0.0)
    first = ppap.sample(cascade, [guide], stage="base", **how)
    assert first.images.shape[-1] == SIZE


def test_its_cost_is_known(cascade: Any) -> None:
    run = plan(cascade, [], 1, Sampling(steps=3, prompt=PROMPTS[0]))
    costs = estimate(run).stages
    assert costs["upsampler"].forward > costs["base"].forward > 0


@pytest.mark.parametrize(
    ("join", "words", "hint"),
    [
        (lambda one, two: f"{two}", "draws nothing alone", "STAGE1+STAGE2"),
        (lambda one, two: f"{two}+{one}", "no stages of one model", "an IFPipeline and an"),
        (lambda one, two: f"{one}+{one}", "no stages of one model", "an IFPipeline and an"),
        (lambda one, two: f"{one}+{two}+{two}", "no stages of one model", "an IFPipeline and an"),
        (lambda one, two: f"{one}+", "is no pipeline", "model_index.json"),
    ],
)
def test_what_is_no_cascade(
    folders: tuple[Path, Path], join: Callable[[Path, Path], str], words: str, hint: str
) -> None:
    with pytest.raises(AssetError, match=words) as caught:
        ppap.backend("diffusers", checkpoint=join(*folders))
    assert hint in caught.value.hint


def test_a_second_stage_of_another_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    deepfloyd_upsampler(encoder_hid_dim=8).save_pretrained(tmp_path / "other")
    with pytest.raises(AssetError, match="texts of 8 numbers, not 6 and 16") as caught:
        ppap.backend("diffusers", checkpoint=f"{folders[0]}+{tmp_path / 'other'}")
    assert "same model" in caught.value.hint
