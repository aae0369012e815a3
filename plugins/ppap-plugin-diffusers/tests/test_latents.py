"""Guides on pipelines that draw latents, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import Run, refused, typed
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from PIL import Image
from tiny_pipelines import PROMPTS, SIZE, TINY, dit, ldm, stable_diffusion, tiny_vae
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.guidance import Guide
from ppap_framework.run import Sampling, plan
from ppap_framework.run.estimate import estimate


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return typed(capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "latent"
    stable_diffusion().save_pretrained(path)
    return path


def brightening() -> Guide:
    return guide_of(
        lambda x, _: x.mean((1, 2, 3)), lambda p, t: (p - t).square(), torch.ones(1), scale=30.0
    )


@pytest.mark.parametrize("through", ["clean", "detached"])
@pytest.mark.parametrize("name", [name for name in TINY if name != "pixel U-Nets"])
def test_every_family_is_guided(name: str, through: Any) -> None:
    pipe = TINY[name]()
    prompt = {"DiTPipeline": "207", "LDMPipeline": None}.get(type(pipe).__name__, PROMPTS[0])
    how = {"num": 2, "steps": 4, "prompt": prompt, "through": through, "compare": True}
    result = ppap.sample(pipe, [brightening()], **how)
    gained = (result.images - result.unguided.images).mean((1, 2, 3))
    if (name, through) == ("PRX, pixels", "detached"):
        # A random network that predicts x_0 answers a brighter x_t with anything.
        assert gained.abs().gt(1e-3).all()
    else:
        assert gained.gt(0.0).all()


@pytest.mark.parametrize("name", ["Chroma", "Z-Image", "PRX, pixels"])
def test_what_a_step_takes_is_estimated(name: str) -> None:
    run = plan(TINY[name](), [], 1, Sampling(steps=4, prompt=PROMPTS[0]))
    (cost,) = estimate(run).stages.values()
    assert cost.forward > 0


def test_from_the_command_line(toy: None, folder: Path, tmp_path: Path, run: Run) -> None:
    command = ("run", "--backend", "diffusers", "--checkpoint", folder, "--guider", "colour")
    target = ("--target", "green", "--scale", "10", "--prompt", "a cat", "--num", "1")
    out = tmp_path / "out"
    refused(run(*command, *target, "--out", out), 2, "draws latents", "--through detached")
    assert not out.exists()
    done = run(*command, *target, "--out", out, "--through", "detached", "--steps", "2")
    assert done.code == 0, done.err
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["through"] == "detached"
    assert record["config"]["backend"]["checkpoint"] == "latent"
    assert record["config"]["guides"][0]["experts"] is None
    with Image.open(out / "000.png") as image:
        assert image.size == (2 * SIZE, 2 * SIZE)
    dry = run(*command, *target, "--through", "clean", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert json.loads(dry.out)["estimate"]["stages"]["base"]["backward"] > 0


class TestInitImages:
    @pytest.mark.parametrize("name", [name for name in TINY if name != "pixel U-Nets"])
    def test_pictures_become_latents_as_they_become_images(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An autoencoder whose latents are thumbnails shows whether the scalings are inverse."""
        stage = ppap.backend(TINY[name]()).stages[0]
        (_, height, width), (channels, *side) = stage.image_shape, stage.shape
        if stage.decoder is None:
            images = torch.rand(2, 3, height, width)
            assert torch.equal(stage.encode(images), images)
            return

        def thumbnails(images: torch.Tensor) -> Any:
            small = F.adaptive_avg_pool2d(images, side).mean(1, keepdim=True)
            return VQEncoderOutput(latents=small.expand(-1, channels, -1, -1))

        def enlarged(z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (F.interpolate(z[:, :1].expand(-1, 3, -1, -1), (height, width)),)

        monkeypatch.setattr(stage.decoder, "encode", thumbnails)
        monkeypatch.setattr(stage.decoder, "decode", enlarged)
        z = torch.rand(2, 1, *side).expand(-1, channels, -1, -1)
        images = F.interpolate(z[:, :1].expand(-1, 3, -1, -1), (height, width))
        with torch.no_grad():
            torch.testing.assert_close(stage.decode(stage.encode(images)), images)

    def test_the_encoder_is_that_of_the_pipeline(self) -> None:
        pipe = stable_diffusion()
        images = torch.rand(1, 3, 2 * SIZE, 2 * SIZE) * 2 - 1
        with torch.no_grad():
            expected = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
        torch.testing.assert_close(ppap.backend(pipe).stages[0].encode(images), expected)

    @pytest.mark.parametrize("vae", [None, "tiny"])
    def test_black_pixels_are_kept(self, vae: str | None, tmp_path: Path) -> None:
        if vae is not None:
            tiny_vae().save_pretrained(tmp_path)
        options = {} if vae is None else {"vae": str(tmp_path)}
        picture = torch.rand(3, 2 * SIZE, 2 * SIZE) * 2 - 1
        mask = torch.zeros(2 * SIZE, 2 * SIZE)
        mask[4:11, 7:] = 1
        how = {"num": 2, "steps": 3, "prompt": PROMPTS[0], "init_image": picture}
        backend = ppap.backend(stable_diffusion(), options=options)
        filled = ppap.sample(backend, **how, mask=mask, resample=2)
        assert torch.equal(filled.images[..., mask == 0], picture[:, mask == 0].expand(2, -1, -1))
        assert filled.images[..., mask == 1].std() > 0
        assert filled.plan.begun is not None
        assert filled.plan.begun[1].unknown.sum() == 4 * (SIZE - 3)  # latents of 2x2 pixels
        noised = ppap.sample(backend, **how, strength=0.4)
        assert len(noised.plan.indices) == 1


class TestPrompts:
    def test_guidance_is_classifier_free_by_default(self) -> None:
        pipe = stable_diffusion()
        how = {"num": 1, "steps": 2}
        told = ppap.sample(pipe, prompt=PROMPTS[0], **how)
        for options in ({"cfg": 1.0}, {"cfg": 3.0}, {"negative": "grey"}):
            other = ppap.sample(ppap.backend(pipe, options=options), prompt=PROMPTS[0], **how)
            assert not torch.equal(other.images, told.images), options
        for prompt, cfg, passes in ((PROMPTS[0], 7.5, 2), (PROMPTS[0], 1.0, 1), (None, 7.5, 1)):
            backend = ppap.backend(pipe, options={"cfg": cfg})
            condition = backend.encode(None if prompt is None else [prompt], 1)
            assert backend.stages[0].evaluations(condition) == passes

    def test_classes_by_name(self) -> None:
        pipe = dit()
        backend = ppap.backend(pipe)
        by_name, by_number = (backend.encode([name], 1) for name in ("retriever", "207"))
        assert by_name.prompts == by_number.prompts == [207]
        assert by_name.negatives == [1000]
        assert backend.encode(None, 2).prompts == [1000, 1000]
        with pytest.raises(UsageError, match="there is no class"):
            backend.encode(["no such class"], 1)


class TestRefusals:
    def test_an_inpainting_network(self) -> None:
        with pytest.raises(AssetError, match="denoises 9 channels"):
            ppap.backend(stable_diffusion(in_channels=9))

    def test_a_distilled_network(self) -> None:
        with pytest.raises(AssetError, match="distilled"):
            ppap.backend(stable_diffusion(time_cond_proj_dim=8))

    def test_out_of_memory_says_what_takes_less(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe = stable_diffusion()

        def full(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(pipe.vae, "decode", full)
        with pytest.raises(ppap.PpapError, match="out of memory with 2 images") as caught:
            ppap.sample(pipe, num=2, steps=2)
        assert "--batch" in caught.value.hint


@pytest.mark.slow
def test_detached_guidance_needs_less_memory() -> None:
    costs = {}
    for through in ("clean", "detached"):
        run = plan(ldm(), [brightening()], 1, Sampling(steps=5, through=through))
        (costs[through],) = estimate(run).stages.values()
    assert costs["detached"].forward == costs["clean"].forward
    assert 0 < costs["detached"].backward < costs["clean"].backward
    assert costs["detached"].memory < costs["clean"].memory
