"""Our guides inside diffusers draw what our own samplers do."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusion3AutoBlocks,
    StableDiffusionXLAutoBlocks,
)
from PIL import Image
from tiny_pipelines import (
    PROMPTS,
    SIZE,
    TINY,
    drawn,
    noise_of,
    pixel,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    told,
)
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.guidance import Guide
from ppap_plugin_diffusers.inside import GuideBlock, callback, guided, guided_blocks

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
STEPS = 4
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HOW: dict[str, Any] = {"through": "detached", "normalize": True}


def brightening(**changed: Any) -> Guide:
    return guide_of(
        lambda x, _: x.mean((1, 2, 3)),
        lambda p, t: (p - t).square(),
        torch.ones(1),
        **{"scale": 0.5} | changed,
    )


def ours(pipe: Any, guide: Guide, **how: Any) -> Any:
    """What our sampler draws of both images, guided and not."""
    prompts, _ = told(pipe)
    how = {"num": 2, "steps": STEPS, "sampler": "ddim", "prompt": prompts, "compare": True, **how}
    result = ppap.sample(pipe, [guide], **how)
    changed = (result.images - result.unguided.images).abs().mean((1, 2, 3))
    assert changed.gt(2e-3).all()
    return result


def unclipped(**changed: Any) -> Any:
    return pixel(DDIMScheduler(clip_sample=False), **changed)


def euler() -> Any:
    pipe = stable_diffusion()
    config = {**pipe.scheduler.config, "steps_offset": 0, "set_alpha_to_one": True}
    pipe.scheduler = EulerDiscreteScheduler.from_config(config)
    return pipe


CLASSIC = {
    **{name: TINY[name] for name in TINY if name not in ("pixel U-Nets", "DeepFloyd IF, stage I")},
    "pixels": unclipped,
    "pixels, v": lambda: pixel(DDIMScheduler(clip_sample=False, prediction_type="v_prediction")),
    "pixels, x0": lambda: pixel(DDIMScheduler(clip_sample=False, prediction_type="sample")),
}


class TestGuided:
    @pytest.mark.parametrize("name", CLASSIC)
    def test_images_are_those_of_our_sampler(self, name: str) -> None:
        pipe, guide = CLASSIC[name](), brightening()
        stage = ppap.backend(pipe).stages[0]
        own = ours(pipe, guide, **HOW)
        step = pipe.scheduler.step
        with guided(pipe, [guide], **HOW) as same:
            assert same is pipe
            images = drawn(pipe, noise_of(stage.shape), STEPS, **told(pipe)[1])
        torch.testing.assert_close(images, own.images_01, **TOLERANCE)
        assert pipe.scheduler.step == step
        alone = drawn(pipe, noise_of(stage.shape), STEPS, **told(pipe)[1])
        torch.testing.assert_close(2.0 * alone - 1.0, own.unguided.images, **TOLERANCE)

    @QUIET
    def test_any_scheduler(self) -> None:
        """Whatever the sampler, images become brighter, also of two batches in one context."""
        for kind in (diffusers.DPMSolverMultistepScheduler, diffusers.HeunDiscreteScheduler):
            pipe = stable_diffusion()
            pipe.scheduler = kind.from_config(pipe.scheduler.config)
            draw = partial(pipe, num_inference_steps=STEPS, output_type="pt", guidance_scale=2.0)
            noise = noise_of((4, SIZE, SIZE))
            with guided(pipe, [brightening()], **HOW):
                bright = [draw(PROMPTS, latents=noise).images, draw("a", latents=noise[:1]).images]
            plain = [draw(PROMPTS, latents=noise).images, draw("a", latents=noise[:1]).images]
            for one, other in zip(bright, plain, strict=True):
                assert (one - other).mean((1, 2, 3)).gt(1e-3).all(), kind

    def test_experts_are_attached_while_it_draws(self, tmp_path: Path, monkeypatch: Any) -> None:
        pytest.importorskip("ppap_plugin_classifier", reason="the guide")
        monkeypatch.setattr("ppap_framework.learn.distillation._STATISTICS_BATCHES", 2)
        pipe = unclipped()
        how = {"num": 16, "steps": 5, "iterations": 4, "batch": 4, "num_experts": 2}
        adapted = ppap.adapt(pipe, "classifier", out=tmp_path, keep=False, calibrate=False, **how)
        guide = ppap.guide("classifier", target="red cube", scale="raw:300", experts=adapted)
        before = [p.clone() for p in guide.model.network.parameters()]
        own = ours(pipe, guide)
        with guided(pipe, [guide]):
            images = drawn(pipe, noise_of((3, SIZE, SIZE)), STEPS, **told(pipe)[1])
        torch.testing.assert_close(images, own.images_01, **TOLERANCE)
        assert (own.naive.images - own.images).abs().max() > 1e-3
        for old, new in zip(before, guide.model.network.parameters(), strict=True):
            assert torch.equal(old, new)

    def test_an_error_restores_the_pipeline(self) -> None:
        pipe = stable_diffusion()
        step = pipe.scheduler.step

        def interrupted(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

        guide = guide_of(lambda x, _: x.mean((1, 2, 3)), interrupted, torch.ones(1))
        with pytest.raises(KeyboardInterrupt), guided(pipe, [guide], **HOW):
            pipe("a", num_inference_steps=2)
        assert pipe.scheduler.step == step
        assert "step" not in vars(pipe.scheduler)

    def test_one_context_in_another(self) -> None:
        pipe, noise = stable_diffusion(), noise_of((4, SIZE, SIZE))
        draw = partial(drawn, pipe, noise, STEPS, prompt=PROMPTS)
        with guided(pipe, [brightening()], **HOW):
            once = draw()
            with guided(pipe, [brightening()], **HOW):
                twice = draw()
            torch.testing.assert_close(draw(), once)
        assert twice.mean() > once.mean() > draw().mean()


def modular(classic: Any, blocks: Any, **components: Any) -> Any:
    pipe = blocks.init_pipeline()
    given = {**classic.components, **components}
    given = {name: part for name, part in given.items() if part is not None}
    pipe.update_components(**{k: v for k, v in given.items() if k in pipe.component_names})
    for loop in loops(pipe._blocks):
        loop.set_progress_bar_config(disable=True)
    return pipe


def loops(blocks: Any) -> list[Any]:
    inside = [loop for each in blocks.sub_blocks.values() for loop in loops(each)]
    return inside + [blocks] * hasattr(blocks, "loop_step")


def drawn_modular(pipe: Any, shape: tuple[int, ...], **how: Any) -> torch.Tensor:
    size = {"height": 2 * SIZE, "width": 2 * SIZE, "num_inference_steps": STEPS}
    how = {"prompt": PROMPTS, "latents": noise_of(shape), "output_type": "pt", **size, **how}
    images: torch.Tensor = pipe(**how).images
    return images


MODULAR = {
    "XL": (stable_diffusion_xl, StableDiffusionXLAutoBlocks, {}),
    "3": (stable_diffusion_3, StableDiffusion3AutoBlocks, {"negative_prompt": ""}),
}


class TestBlock:
    @pytest.mark.parametrize("name", MODULAR)
    def test_images_are_those_of_our_sampler(self, name: str) -> None:
        make, blocks, more = MODULAR[name]
        classic, guide = make(), brightening()
        guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
        pipe = modular(classic, guided_blocks(blocks(), [guide], **HOW), guider=guider)
        backend = ppap.backend(classic, options={"cfg": 3.0})
        result = ppap.sample(
            backend,
            [guide],
            num=2,
            steps=STEPS,
            sampler="ddim",
            prompt=PROMPTS,
            compare=True,
            **HOW,
        )
        assert (result.images - result.unguided.images).abs().mean() > 2e-3
        images = drawn_modular(pipe, backend.stages[0].shape, **more)
        torch.testing.assert_close(images, result.images_01, **TOLERANCE)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            (diffusers.AdaptiveProjectedGuidance, {}),
            (diffusers.AdaptiveProjectedMixGuidance, {}),
            (diffusers.ClassifierFreeZeroStarGuidance, {"zero_init_steps": 0}),
            (diffusers.TangentialClassifierFreeGuidance, {}),
        ],
        ids=lambda given: getattr(given, "__name__", ""),
    )
    def test_it_follows_every_guider(self, kind: Any, options: dict[str, Any]) -> None:
        """Guides see what the guider makes of the network's outputs, and change it by the same
        rule: without them, and with a scale of 0, the images are the guider's own.
        """
        classic, blocks = stable_diffusion_xl(), StableDiffusionXLAutoBlocks()
        guider, images = kind(guidance_scale=3.0, **options), []
        for guides in (None, [brightening(scale=0.0)], [brightening()]):
            own = blocks if guides is None else guided_blocks(blocks, guides, **HOW)
            images.append(drawn_modular(modular(classic, own, guider=guider), (4, SIZE, SIZE)))
        plain, zero, bright = images
        torch.testing.assert_close(zero, plain, **TOLERANCE)
        assert (bright - plain).mean((1, 2, 3)).gt(1e-3).all()

    def test_where_it_is(self) -> None:
        blocks = StableDiffusionXLAutoBlocks()
        made = guided_blocks(blocks, [brightening()])
        for loop in loops(made):
            names = list(loop.sub_blocks)
            assert names[names.index("guide") + 1] == "after_denoiser"
            assert isinstance(loop.sub_blocks["guide"], GuideBlock)
        assert len(loops(made)) == len(loops(blocks)) > 1
        assert not any("guide" in loop.sub_blocks for loop in loops(blocks))
        with pytest.raises(UsageError, match="no denoising loop") as caught:
            guided_blocks(GuideBlock([]), [brightening()])
        assert "GuideBlock" in caught.value.hint


class TestCallback:
    @QUIET
    @pytest.mark.parametrize(
        "make",
        [stable_diffusion, euler, stable_diffusion_3, TINY["Flux"]],
        ids=["DDIM", "Euler", "flow", "packed"],
    )
    def test_images_are_those_of_our_sampler_but_for_the_first_step(self, make: Any) -> None:
        pipe, (prompts, same) = make(), (PROMPTS, {"prompt": PROMPTS})
        stage = ppap.backend(pipe).stages[0]
        first = max(stage.timesteps(STEPS)) / stage.schedule.num_timesteps
        guide = brightening(interval=(0.0, first))
        own = ours(pipe, guide, prompt=prompts, **HOW)
        told = {**same, "callback_on_step_end": callback(pipe, [brightening()], **HOW)}
        images = drawn(pipe, noise_of(stage.shape), STEPS, **told)
        # x_0 is found from a difference of rounded latents, and those of Euler are large.
        torch.testing.assert_close(images, own.images_01, atol=3e-4, rtol=0.0)

    def test_a_sampler_of_another_kind(self) -> None:
        pipe = stable_diffusion()
        pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(UsageError, match="the steps of a PNDMScheduler") as caught:
            callback(pipe, [brightening()])
        assert "guided" in caught.value.hint


class TestRefusals:
    def test_through_the_denoiser(self) -> None:
        pipe = stable_diffusion()
        inside = guided(pipe, [brightening()], through="clean")
        with pytest.raises(UsageError, match="a loop of ours") as caught, inside:
            pipe("a", num_inference_steps=2)
        assert "detached" in caught.value.hint

    def test_guides_that_cannot_look_at_latents(self) -> None:
        pipe = stable_diffusion()
        with pytest.raises(UsageError, match="draws latents"), guided(pipe, [brightening()]):
            pipe("a", num_inference_steps=2)

    def test_what_is_no_family(self) -> None:
        pipe = diffusers.ConsistencyModelPipeline(
            pixel().unet, diffusers.CMStochasticIterativeScheduler()
        )
        with pytest.raises(AssetError, match="of no family"), guided(pipe, []):
            pass

    def test_images_that_are_no_square(self) -> None:
        pipe = TINY["Flux"]()
        with pytest.raises(PpapError, match="square images"), guided(pipe, [brightening()], **HOW):
            pipe("a", num_inference_steps=2, height=2 * SIZE, width=4 * SIZE)

    def test_what_is_no_pipeline(self) -> None:
        for wrong in (None, "painter", stable_diffusion().unet):
            with pytest.raises(AssetError, match="of no family"), guided(wrong, [brightening()]):
                pass
            with pytest.raises(AssetError, match="of no family"):
                callback(wrong, [brightening()])
            with pytest.raises(UsageError, match="no block of a modular pipeline"):
                guided_blocks(wrong, [brightening()])

    def test_settings_that_are_the_pipelines(self) -> None:
        for wrong in ({"steps": 3}, {"seed": 1}, {"strength": 1.0}):
            with pytest.raises(UsageError, match=f"no setting '{next(iter(wrong))}'") as caught:
                GuideBlock([brightening()], **wrong)
            assert "through, normalize" in caught.value.hint

    def test_a_scheduler_that_is_replaced_meanwhile(self) -> None:
        pipe, other = stable_diffusion(), DDIMScheduler()
        with pytest.raises(UsageError, match="got another scheduler") as caught:  # noqa: SIM117
            with guided(pipe, [brightening()], **HOW):
                pipe.scheduler = other
        assert "first" in caught.value.hint
        pipe = stable_diffusion()
        steering = callback(pipe, [brightening()], **HOW)
        pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(UsageError, match="the steps of a DDPMScheduler"):
            pipe("a", num_inference_steps=2, callback_on_step_end=steering)

    def test_a_callback_without_latents(self) -> None:
        pipe = stable_diffusion()
        steering = callback(pipe, [brightening()], **HOW)
        shown = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        with pytest.raises(UsageError, match="no latents") as caught:
            pipe("a", num_inference_steps=2, callback_on_step_end=steering, **shown)
        assert "latents" in caught.value.hint

    def test_steps_from_images_to_noise(self) -> None:
        pipe = stable_diffusion()
        pipe.scheduler = diffusers.DDIMInverseScheduler.from_config(pipe.scheduler.config)
        inside = guided(pipe, [brightening()], **HOW)
        with pytest.raises(UsageError, match="from images to noise"), inside:
            pipe("a", num_inference_steps=2)


@pytest.mark.parametrize("predicts", ["sample", "epsilon"])
def test_inference_mode_changes_nothing(predicts: str) -> None:
    pipe = stable_diffusion()
    pipe.scheduler.register_to_config(prediction_type=predicts)
    draw = partial(pipe, PROMPTS, num_inference_steps=3, output_type="pt")
    noise, images = noise_of((4, SIZE, SIZE)), []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            with guided(pipe, [brightening()], **HOW):
                images.append(draw(latents=noise.clone()).images)
            steering = callback(pipe, [brightening()], **HOW)
            images.append(draw(latents=noise.clone(), callback_on_step_end=steering).images)
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[3])
    assert not torch.equal(images[0], images[1])


def test_a_guide_that_steers_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    pipe = stable_diffusion()
    blind = guide_of(lambda x, _: x.mean((1, 2, 3)) * 3e38 * 3e38, lambda p, t: p, torch.ones(1))
    with guided(pipe, [blind], through="detached"):
        pipe("a", num_inference_steps=2)
    assert "2 gradients (100 %) were not finite and left out" in caplog.text


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/inside-diffusers.md shows, with a tiny pipeline."""
    pytest.importorskip("ppap_plugin_midas", reason="the guide of the page")
    page = Path(__file__).parents[3] / "docs" / "inside-diffusers.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(examples) == 3
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save("reference.png")
    pipe, few = stable_diffusion_xl(), "num_inference_steps=3"
    given = {name: part for name, part in pipe.components.items() if part is not None}
    names = given.keys() & modular(pipe, StableDiffusionXLAutoBlocks()).component_names
    known: dict[str, Any] = {"pipe": pipe, "size": 2 * SIZE}
    known["components"] = {name: given[name] for name in names}
    for example in examples:
        example = example.replace("num_inference_steps=20", few)
        exec(example.replace("callback_on", f"{few}, callback_on"), known)
        (image,) = known.pop("images")
        assert image.size == (2 * SIZE, 2 * SIZE)
