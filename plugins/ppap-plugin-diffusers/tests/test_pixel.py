"""Pixel U-Nets: the pipeline itself is the oracle for every convention of a scheduler."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import SIZE, drawn, pixel, unet
from torch import Tensor
from torch.testing import assert_close

import ppap_framework as ppap
from ppap_framework.diffusion import NoiseSource
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_plugin_diffusers.convention import convention_of

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def noise_of(batch: int = 2, channels: int = 3) -> Tensor:
    return NoiseSource(0)((batch, channels, SIZE, SIZE))


def ddim(**config: Any) -> Any:
    return diffusers.DDIMScheduler(**config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"clip_sample": False},
        {"clip_sample_range": 0.5},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction", "clip_sample": False},
        {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False},
        {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
        {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        {"num_train_timesteps": 200, "beta_start": 0.001, "beta_end": 0.1},
        {
            "num_train_timesteps": 40,
            "trained_betas": [0.01 * k for k in range(1, 41)],
            "timestep_spacing": "trailing",
        },
    ],
    ids=lambda config: " ".join(config) or "default",
)
def test_unguided_images_are_the_pipeline_s(config: dict[str, Any]) -> None:
    pipe, steps = pixel(ddim(**config)), 8
    own = ppap.sample(pipe, num=2, steps=steps, sampler="ddim").images_01
    assert_close(own, drawn(pipe, noise_of(), steps), **TOLERANCE)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 333, 1000])
def test_timesteps_are_the_scheduler_s(spacing: str, steps: int) -> None:
    scheduler = ddim(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    kept = convention_of(scheduler, False, 64).timesteps(steps)
    assert kept == (None if steps == 1 else scheduler.timesteps.flip(0).tolist())


def test_an_offset_beyond_the_schedule_is_refused() -> None:
    convention = convention_of(ddim(steps_offset=1), False, 64)
    assert convention.timesteps(500)[-1] == 999
    with pytest.raises(UsageError, match="no 1000 of 1000 timesteps"):
        convention.timesteps(1000)
    with pytest.raises(UsageError, match="cannot sample in 1001 steps"):
        ppap.sample(pixel(), num=1, steps=1001)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_euler_s_walk_is_a_ddim_walk(predicts: str) -> None:
    """Euler keeps x / alpha, and begins with noise that is not scaled to the last timestep."""
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type=predicts, timestep_spacing="leading", steps_offset=1
    )
    pipe = diffusers.DDPMPipeline(unet(), scheduler)
    own = ppap.sample(pipe, num=2, steps=10, sampler="ddim").images
    scheduler.set_timesteps(10)
    x = noise_of() * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipe.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x).prev_sample
    assert_close(own, x.clamp(-1.0, 1.0), **TOLERANCE)


@pytest.mark.parametrize(
    "variance", ["fixed_small", "fixed_large", "fixed_small_log", "learned_range"]
)
def test_ancestral_images_are_the_ddpm_scheduler_s(variance: str) -> None:
    # After a last timestep above 0, as of "trailing", the scheduler adds noise to finished images.
    scheduler = diffusers.DDPMScheduler(variance_type=variance)
    pipe = diffusers.DDPMPipeline(
        unet(out_channels=6 if variance == "learned_range" else 3), scheduler
    )
    own = ppap.sample(pipe, num=2, steps=5, sampler="ddpm").images
    source = NoiseSource(0)
    x = source((2, 3, SIZE, SIZE))
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipe.unet(x, t).sample
            draw = source((2, 3, SIZE, SIZE))
            with pytest.MonkeyPatch.context() as patch:
                name = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
                patch.setattr(name, lambda *_, draw=draw, **__: draw)
                x = scheduler.step(output, t, x).prev_sample
    assert_close(own, x.clamp(-1.0, 1.0), **TOLERANCE)


def test_the_loaded_pipeline_is_used_as_it_is() -> None:
    pipe = pixel()
    pipe.unet.to(torch.bfloat16)
    backend = ppap.backend(pipe)
    assert backend.stages[0].network is pipe.unet
    assert backend.inner.device == torch.device("cpu")
    assert backend.origin.component == "diffusers"
    assert backend.origin.weights_sha256 is not None
    assert ppap.sample(pipe, num=1, steps=2).images.isfinite().all()
    assert pipe.unet.dtype == torch.bfloat16
    assert all(p.requires_grad for p in pipe.unet.parameters())


def test_classes_are_prompts() -> None:
    pipe = pixel(num_class_embeds=3)
    how = {"num": 2, "steps": 4, "sampler": "ddim"}
    own = ppap.sample(pipe, **how, prompt=["2", "class 0"]).images_01
    labels = torch.tensor([2, 0])
    with pytest.MonkeyPatch.context() as patch:
        forward = pipe.unet.forward
        patch.setattr(pipe.unet, "forward", lambda x, t: forward(x, t, class_labels=labels))
        assert_close(own, drawn(pipe, noise_of(), 4), **TOLERANCE)
    with pytest.raises(UsageError, match="class-conditional"):
        ppap.sample(pipe, num=1)
    with pytest.raises(UsageError, match="takes no prompt"):
        ppap.sample(pixel(), num=1, prompt="a cat")


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "words", "hint"),
        [
            (lambda: pixel(in_channels=1, out_channels=1), "denoises 1 channels", "have 3"),
            (lambda: pixel(ddim(prediction_type="score")), "'score'", "v_prediction"),
            (lambda: pixel(ddim(timestep_spacing="odd")), "'odd'", "trailing"),
            (
                lambda: diffusers.DDPMPipeline(unet(), diffusers.EDMEulerScheduler()),
                "EDMEulerScheduler",
                "DDIMScheduler",
            ),
            (
                lambda: diffusers.DDPMPipeline(
                    unet(), diffusers.DDPMScheduler(variance_type="learned_range")
                ),
                "predicts none",
                "fixed_small",
            ),
            (
                lambda: diffusers.ConsistencyModelPipeline(
                    unet(), diffusers.CMStochasticIterativeScheduler()
                ),
                "ConsistencyModelPipeline is of no family",
                "pixel U-Nets (DDPMPipeline",
            ),
        ],
    )
    def test_what_cannot_be_driven(self, make: Any, words: str, hint: str) -> None:
        with pytest.raises(AssetError) as caught:
            ppap.backend(make())
        assert words in caught.value.message
        assert hint in caught.value.hint
        assert "\n" not in str(caught.value)

    def test_what_goes_with_files_alone(self) -> None:
        pipe = pixel()
        for wrong in ({"checkpoint": "x"}, {"dtype": "bfloat16"}, {"options": {"colour": 1}}):
            with pytest.raises(UsageError):
                ppap.backend(pipe, **wrong)
        with pytest.raises(UsageError, match="have no latents"):
            ppap.backend(pipe, options={"vae": "x"})
        with pytest.raises(UsageError, match="a Conv2d is no diffusion model"):
            ppap.backend(torch.nn.Conv2d(3, 3, 1))
        with pytest.raises(PpapError, match="has no unet"):
            ppap.backend(diffusers.DDPMPipeline(None, ddim()))
