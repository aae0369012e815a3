"""Every family: unguided, the images are those of the pipeline itself."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_pipelines import TINY, drawn, noise_of, told
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


@pytest.mark.parametrize("option", ["use_karras_sigmas", "stochastic_sampling", "invert_sigmas"])
def test_other_flows_are_refused(option: str) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**{option: True})
    with pytest.raises(AssetError, match=f"the scheduler's {option} is True"):
        convention_of(scheduler, False)
