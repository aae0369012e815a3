"""Init images and masks: what they mean for images, records and counts, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import Run, refused
from PIL import Image
from torch import Tensor
from toy_distribution import SIZE, green

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Prediction, Stage
from ppap_framework.diffusion import NoiseSource, noised, trajectory
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.known import Known
from ppap_framework.run import LoadedBackend, Sampling, counts_of, plan
from ppap_framework.runtime import Progress

ASKED: dict[str, Any] = {"num": 3, "steps": 10, "seed": 4}
PICTURE = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
MASK = np.zeros((SIZE, SIZE), bool)
MASK[2:6, 3:] = True
PIXELS = torch.from_numpy(PICTURE).permute(2, 0, 1) / 127.5 - 1.0
FILLED: dict[str, Any] = {"init_image": PICTURE, "mask": MASK}


def kept(images: Tensor) -> bool:
    """Whether the black pixels are the picture's."""
    black = ~torch.from_numpy(MASK)
    return all(torch.equal(image[:, black], PIXELS[:, black]) for image in images)


def identity(sampling: Sampling) -> dict[str, Any]:
    """Its record, without the places of pictures."""
    record = sampling.record()
    return record | {name: (record[name] or {}).get("sha256") for name in ("init_image", "mask")}


class TestStrength:
    def test_all_of_it_is_no_init_image(self, toy: LoadedBackend) -> None:
        plain = ppap.sample(toy, [green()], **ASKED)
        whole = ppap.sample(toy, [green()], **ASKED, init_image=PICTURE, strength=1.0)
        assert torch.equal(whole.images, plain.images)
        assert whole.plan.steps == plain.plan.steps == 10

    def test_none_of_it_is_the_picture(self, toy: LoadedBackend) -> None:
        errors = []
        for strength in (0.001, 0.3, 0.6, 0.9):
            how = {"init_image": PICTURE, "strength": strength, "sampler": "ddim"}
            drawn = ppap.sample(toy, num=2, steps=100, **how)
            errors.append((drawn.images - PIXELS).abs().mean().item())
        assert errors[0] < 0.03
        assert errors == sorted(errors)

    @pytest.mark.parametrize(("strength", "steps"), [(0.6, 6), (0.04, 1), (0.75, 8), (None, 6)])
    def test_the_walk_begins_in_the_noised_picture(
        self, toy: LoadedBackend, strength: float | None, steps: int
    ) -> None:
        drawn = ppap.sample(toy, **ASKED, init_image=PICTURE, strength=strength)
        process, noise = drawn.plan.process, NoiseSource(4)
        assert process.timesteps == tuple(range(0, 10 * steps, 10))
        start = noised(PIXELS, noise((3, 3, SIZE, SIZE)), process.alphas_cumprod[-1])
        stage = toy.stages[0]
        *_, (last, _) = trajectory(stage, process, start, noise, step=drawn.plan.sampling.step)
        assert torch.equal(drawn.images, last.clamp(-1.0, 1.0))
        assert counts_of(drawn.plan).denoiser_forwards == 3 * steps


class TestMask:
    def test_black_is_kept_and_white_drawn(self, toy: LoadedBackend) -> None:
        filled = ppap.sample(toy, [green()], **ASKED, **FILLED, compare=True)
        assert filled.unguided is not None
        white = torch.from_numpy(MASK)
        for pictures in (filled.guided, filled.unguided):
            assert kept(pictures.images)
            assert len({image[:, white].numpy().tobytes() for image in pictures.images}) == 3
        moved = (filled.images - filled.unguided.images)[..., white].mean((0, 2))
        assert moved.argmax() == 1  # towards green
        low = ppap.sample(toy, **ASKED, **FILLED, strength=0.1).images
        assert kept(low)
        near = (low - PIXELS)[..., white].abs().mean()
        assert near < 0.5 * (filled.unguided.images - PIXELS)[..., white].abs().mean()

    def test_an_image_depends_on_its_seed_alone(self, toy: LoadedBackend) -> None:
        together = ppap.sample(toy, **ASKED, **FILLED, sampler="ddpm")
        alone = ppap.sample(toy, **ASKED, **FILLED, sampler="ddpm", batch=1)
        assert torch.equal(together.images, alone.images)
        first = ppap.sample(toy, **{**ASKED, "num": 1}, **FILLED, sampler="ddpm").images[0]
        assert torch.equal(first, alone.images[0])

    @pytest.mark.parametrize(
        ("how", "steps"),
        [({}, 50), ({"resample": 1}, 10), ({"resample": 3, "jump_length": 4, "strength": 0.5}, 15)],
    )
    def test_every_step_is_counted(
        self, toy: LoadedBackend, how: dict[str, Any], steps: int
    ) -> None:
        seen: list[Progress] = []
        guide = green(interval=(0.0, 0.35))  # four of the timesteps
        drawn = ppap.sample(toy, [guide], **ASKED, **FILLED, **how, progress=seen.append)
        assert seen[-1] == Progress("drawing", 3 * steps, 3 * steps)
        counts, found = counts_of(drawn.plan), drawn.stats.guidance
        assert counts.denoiser_forwards == found.denoiser_forwards == 3 * steps
        assert counts.guide_forwards == {"colour": found.guides[0].forwards}

    def test_a_later_stage_goes_on_from_what_was_filled_in(self, toy: LoadedBackend) -> None:
        from ppap_plugin_toy.cascade import ToyCascade

        large = Image.fromarray(PICTURE).resize((2 * SIZE, 2 * SIZE), Image.Resampling.NEAREST)
        mask = Image.fromarray(MASK).resize(large.size)
        two = ppap.sample(ToyCascade(toy), **ASKED, init_image=large, mask=mask)
        assert two.images.shape == (3, 3, 2 * SIZE, 2 * SIZE)
        black = ~torch.from_numpy(MASK)
        small = F.interpolate(PIXELS[None].repeat_interleave(2, 2).repeat_interleave(2, 3), SIZE,
                              mode="bicubic", antialias=True).clamp(-1.0, 1.0)  # fmt: skip
        assert torch.equal(two.guided.earlier["base"][0, :, black], small[0, :, black])

    def test_a_network_that_reads_the_mask_is_told_and_walks_once(self, toy: LoadedBackend) -> None:
        told: list[Known] = []

        class Inpainting(DiffusionBackend):
            stages = toy.stages

            def encode(self, prompts: Any, batch: int) -> Any:
                return toy.encode(prompts, batch)

            def inpainting(self, condition: Any, known: Known) -> Any:
                told.append(known)
                return torch.full((3,), 0.5)  # brighter

        drawn = ppap.sample(Inpainting(), **ASKED, **FILLED)
        assert kept(drawn.images)
        assert drawn.plan.indices == tuple(range(9, -1, -1))
        once = ppap.sample(toy, **ASKED, **FILLED, resample=1, prompt="brighter")
        assert torch.equal(drawn.images, once.images)
        assert torch.equal(told[0].x0[0], PIXELS)
        assert torch.equal(told[0].unknown[0, 0] > 0, torch.from_numpy(MASK))
        again = ppap.sample(Inpainting(), **ASKED, **FILLED, resample=2)
        assert len(again.plan.indices) == 20

    def test_latents_that_cannot_be_made_are_refused(self, toy: LoadedBackend) -> None:
        class Latents(Stage):
            name, image_shape, latent_shape = "base", (3, 16, 16), (4, SIZE, SIZE)
            network, schedule = toy.stages[0].network, toy.stages[0].schedule
            variance = "fixed_small"

            def denoise(self, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
                raise NotImplementedError

        class Backend(DiffusionBackend):
            stages = (Latents(),)

            def encode(self, prompts: Any, batch: int) -> None:
                return None

        with pytest.raises(UsageError, match="latents, and cannot make them of a picture"):
            ppap.sample(Backend(), init_image=PICTURE)


class TestPictures:
    @pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 8)])
    def test_the_centre_is_used(self, shape: tuple[int, int]) -> None:
        x0 = torch.rand(1, 3, *shape)
        unknown = (torch.rand(1, 1, *shape) > 0.5).float()
        known = Known(x0=x0, unknown=unknown).sized(8, 8)
        top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
        assert torch.equal(known.x0, x0[..., top : top + 8, left : left + 8])
        assert torch.equal(known.unknown, unknown[..., top : top + 8, left : left + 8])

    @pytest.mark.parametrize("factor", [2, 3])
    def test_a_pixel_is_drawn_anew_if_any_part_of_it_is(self, factor: int) -> None:
        unknown = torch.zeros(1, 1, 8 * factor, 8 * factor)
        unknown[..., 3 * factor + 1, 5 * factor] = 1.0
        flat = torch.full((1, 3, 8 * factor, 8 * factor), 0.25)
        known = Known(x0=flat, unknown=unknown).sized(8, 8)
        assert known.unknown.nonzero().tolist() == [[0, 0, 3, 5]]
        torch.testing.assert_close(known.x0, torch.full((1, 3, 8, 8), 0.25))
        assert Known(x0=flat, unknown=unknown).sized(7, 5).x0.shape == (1, 3, 7, 5)

    def test_the_same_picture_is_the_same_run(self, toy: LoadedBackend, tmp_path: Path) -> None:
        Image.fromarray(PICTURE).save(tmp_path / "a.png")
        Image.fromarray(np.where(MASK, 140, 90).astype(np.uint8)).save(tmp_path / "m.png")
        path = str(tmp_path / "a.png")
        pictures = [PICTURE, Image.fromarray(PICTURE), PIXELS, PIXELS.numpy(), path]
        masks = [MASK, torch.from_numpy(MASK), 255 * MASK.astype(np.uint8), MASK[None] * 0.5,
                 tmp_path / "m.png"]  # fmt: skip
        given = [Sampling(init_image=a, mask=m) for a, m in zip(pictures, masks, strict=True)]
        records = [identity(sampling) for sampling in given]
        assert all(record == records[0] for record in records)
        assert given[0] == given[-1] and given[0] == attrs.evolve(given[0], seed=0)
        others = [{"strength": 0.5}, {"mask": ~MASK}, {"init_image": 255 - PICTURE}, {"mask": None}]
        for other in others:
            assert identity(attrs.evolve(given[0], **other)) != records[0]
        # What was recorded before there were init images is recorded alike.
        assert not {"init_image", "strength", "mask", "resample"} & {*Sampling().record()}


@pytest.fixture
def files(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    Image.fromarray(MASK).save(tmp_path / "m.png")
    Image.fromarray(np.pad(MASK, 1)).save(tmp_path / "wide.png")
    for name, colour in (("black", 0), ("white", 255)):
        Image.new("L", (SIZE, SIZE), colour).save(tmp_path / f"{name}.png")
    holes = Image.fromarray(PICTURE).convert("RGBA")
    holes.save(tmp_path / "opaque.png")
    holes.putpixel((1, 1), (0, 0, 0, 100))
    holes.save(tmp_path / "holes.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    np.save(tmp_path / "flat.npy", np.zeros((SIZE, SIZE)))


DRAW = ("run", "--backend", "toy", "--steps", "4", "--num", "1")
WRONG: list[tuple[str, int, str, str]] = [
    ("--init-image no.png", 4, "init image 'no.png' is not there", "path"),
    ("--init-image cat", 4, "init image 'cat' is not there", "path"),
    ("--init-image torn.png", 4, "init image 'torn.png' cannot be read", "damaged"),
    ("--init-image holes.png", 2, "'holes.png' is transparent in places", "--mask"),
    ("--init-image flat.npy", 2, "init image 'flat.npy' is no picture", "PIL"),
    ("--init-image ''", 2, "init image is empty", "path"),
    ("--strength 0.5", 2, "strength is for an init image, and there is none", "leave"),
    ("--mask m.png", 2, "mask is for an init image, and there is none", "leave"),
    ("--init-image a.png --resample 2", 2, "resample is for a mask", "leave it out"),
    ("--init-image a.png --mask wide.png", 2, "has another size than the init image", "same"),
    ("--init-image a.png --mask black.png", 2, "'black.png' is all black", "white pixels are"),
    ("--init-image a.png --mask white.png", 2, "'white.png' is all white", "black ones are kept"),
    ("--init-image a.png --mask holes.png", 2, "mask 'holes.png' is transparent", "alpha"),
    ("--init-image a.png --mask no.png", 4, "mask 'no.png' is not there", "path"),
    *((f"--init-image a.png --strength {x}", 2, "lie above 0", "0.6") for x in (0, -1, 1.5, "nan")),
    ("--init-image a.png --mask m.png --resample 1001", 2, "whole number from 1 to 1000", "5"),
    ("--init-image a.png --mask m.png --jump-length 0", 2, "jump_length must be a whole", "5"),
]


class TestCommandLine:
    @pytest.mark.parametrize(("typed", "code", "said", "hint"), WRONG)
    def test_refuses_in_one_line(
        self, run: Run, files: None, typed: str, code: int, said: str, hint: str
    ) -> None:
        before = sorted(Path().iterdir())
        refused(run(*DRAW, *shlex.split(typed)), code, said, hint)
        assert sorted(Path().iterdir()) == before

    def test_a_picture_that_fails_is_the_only_error(self, run: Run, files: None) -> None:
        found = run(*DRAW, "--init-image", "no.png", "--mask", "m.png", "--strength", "0.5")
        refused(found, 4, "'no.png' is not there")
        found = run(*DRAW, "--init-image", "no.png", "--mask", "gone.png", "--eta", "-2")
        for said in ("'no.png' is not there", "'gone.png' is not there", "eta must be"):
            assert said in found.err

    def test_draws_and_records(self, run: Run, files: None) -> None:
        Path("ppap.toml").write_text('[run]\ninit-image = "opaque.png"\nstrength = 0.5\n')
        found = run(*DRAW, "--mask", "m.png", "--resample", "2", "--out", "out")
        assert found.code == 0, found.err
        config = json.loads(Path("out/run.json").read_text())["config"]
        assert (config["strength"], config["resample"], config["jump_length"]) == (0.5, 2, 5)
        assert config["init_image"]["source"] == "opaque.png"
        assert len(config["init_image"]["sha256"]) == len(config["mask"]["sha256"]) == 64
        assert config["timesteps"] == [0, 25]
        drawn = np.asarray(Image.open("out/000.png"))
        assert (drawn[~MASK] == PICTURE[~MASK]).all()
        shown = run(*DRAW, "--mask", "m.png", "--dry-run")
        for words in ("opaque.png", "m.png", "base 10 of 100"):
            assert words in shown.out

    @pytest.mark.parametrize("given", [3, object(), np.zeros((3, 8, 8)) + 2, torch.zeros(2, 2)])
    def test_what_is_no_picture(self, given: object) -> None:
        with pytest.raises((UsageError, AssetError), match="init image"):
            Sampling(init_image=given)
        with pytest.raises(UsageError, match="mask"):
            Sampling(init_image=PICTURE, mask=np.zeros(3))


def test_plans_of_other_runs_are_as_they_were(toy: LoadedBackend) -> None:
    plain = plan(toy, [], 2, Sampling(steps=5))
    assert (plain.begun, plain.indices) == (None, (4, 3, 2, 1, 0))
