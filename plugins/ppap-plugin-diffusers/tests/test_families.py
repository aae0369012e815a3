"""Every family: unguided, the images are those of the pipeline itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import PROMPTS, TINY, drawn, made, noise_of, prx, prx_pixel, told
from torch.testing import assert_close

import ppap_framework as ppap
from ppap_framework.errors import AssetError
from ppap_plugin_diffusers.convention import convention_of
from ppap_plugin_diffusers.families import FAMILIES

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module", params=TINY)
def pipe(request: pytest.FixtureRequest) -> Any:
    return TINY[request.param]()


def test_every_family_has_a_tiny_pipeline() -> None:
    assert [family.name for family in FAMILIES] == list(TINY)


def test_unguided_images_are_the_pipeline_s(pipe: Any) -> None:
    backend = ppap.backend(pipe)
    (stage,) = backend.stages
    prompts, same = told(pipe)
    own = ppap.sample(backend, num=2, steps=4, sampler="ddim", prompt=prompts).images_01
    theirs = drawn(pipe, noise_of(stage.shape), 4, **same)
    assert theirs.std() > 0.01
    assert own.shape == theirs.shape == (2, *stage.image_shape)
    assert_close(own, theirs, **TOLERANCE)


@pytest.mark.parametrize(
    "config", [{}, {"shift": 1.0}, {"shift": 6.0}, {"num_train_timesteps": 500}], ids=str
)
@pytest.mark.parametrize("steps", [1, 3, 28])
def test_flow_timesteps_are_the_scheduler_s(config: dict[str, Any], steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(steps)
    length = scheduler.config.num_train_timesteps
    kept = convention_of(scheduler, False).timesteps(steps)
    theirs = [length * s - 1 for s in scheduler.sigmas[:-1].flip(0).tolist()]
    assert kept == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1000, 4096])
def test_dynamic_shifts_are_the_scheduler_s(kind: str, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=mu)
    kept = convention_of(scheduler, False, tokens, ends_with_steps=True).timesteps(4)
    theirs = [1000 * s - 1 for s in scheduler.sigmas[:-1].flip(0).tolist()]
    assert kept == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("noise", [0.5, 2.0, 3.7])
def test_noise_of_another_scale_is_another_noise_level(noise: float) -> None:
    """At each timestep, what the network is told and fed is (1 - s) x_0 + s k eps."""
    convention = convention_of(FlowMatchEulerDiscreteScheduler(shift=3.0), False, noise=noise)
    for t in convention.timesteps(4):
        base = torch.tensor([t], dtype=torch.float64)
        x0, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
        alpha, sigma = convention.alpha_sigma(x0, base)
        y, told = convention.fed(alpha * x0 + sigma * eps, base)
        s = told.item() / 1000
        assert_close(y, (1.0 - s) * x0 + s * noise * eps)
        assert convention.base(told.item()) == pytest.approx(t)
        assert convention.scale(None, told.item()) * y.std() == pytest.approx(
            (alpha * x0 + sigma * eps).std().item()
        )
        v = noise * eps - x0
        prediction = convention.prediction(v, alpha * x0 + sigma * eps, base)
        assert_close(prediction.x0, x0)
        assert_close(convention.output(prediction, base), v)


@pytest.mark.parametrize("noise", [0.0, -2.0, float("nan"), "2", None])
def test_an_impossible_scale_of_noise(noise: Any) -> None:
    with pytest.raises(AssetError, match="noise_scale of the PRXPixelPipeline is"):
        ppap.backend(prx_pixel(noise_scale=noise))


def test_a_deep_compression_autoencoder() -> None:
    decoder = made(
        AutoencoderDC,
        latent_channels=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41,
    )
    pipe = prx(decoder)
    backend = ppap.backend(pipe)
    (stage,) = backend.stages
    own = ppap.sample(backend, num=2, steps=4, sampler="ddim", prompt=PROMPTS).images_01
    theirs = drawn(pipe, noise_of(stage.shape), 4, prompt=PROMPTS)
    assert_close(own, theirs, **TOLERANCE)
    images = torch.rand(1, *stage.image_shape) * 2 - 1
    with torch.no_grad():
        assert_close(stage.encode(images), 0.41 * decoder.encode(images).latent)


@pytest.mark.parametrize("option", ["use_karras_sigmas", "stochastic_sampling", "invert_sigmas"])
def test_other_flows_are_refused(option: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**{option: True})
    with pytest.raises(AssetError, match=f"the scheduler's {option} is True"):
        convention_of(scheduler, False)
