"""Every family: unguided, the images are those of the pipeline itself."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_pipelines import PROMPTS, SIZE, TINY, drawn
from torch.testing import assert_close

import ppap_framework as ppap
from ppap_framework.diffusion import NoiseSource
from ppap_plugin_diffusers.families import FAMILIES

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module", params=TINY)
def pipe(request: pytest.FixtureRequest) -> Any:
    return TINY[request.param]()


def prompts_of(pipe: Any) -> tuple[list[str] | None, dict[str, Any]]:
    """Prompts for our backend, and arguments of the pipeline that mean the same."""
    kind = type(pipe).__name__
    if kind == "DiTPipeline":
        return ["207", "class 3"], {"class_labels": [207, 3]}
    if kind in ("DDIMPipeline", "LDMPipeline"):
        return None, {}
    return PROMPTS, {"prompt": PROMPTS}


def test_every_family_has_a_tiny_pipeline() -> None:
    assert [family.name for family in FAMILIES] == list(TINY)


def test_unguided_images_are_the_pipeline_s(pipe: Any) -> None:
    backend = ppap.backend(pipe)
    (stage,) = backend.stages
    prompts, same = prompts_of(pipe)
    own = ppap.sample(backend, num=2, steps=4, prompt=prompts).images_01
    noise = NoiseSource(0)((2, *stage.shape))
    if type(pipe).__name__ == "FluxPipeline":
        noise = noise.reshape(2, -1, SIZE, SIZE)
    theirs = drawn(pipe, noise, 4, **same)
    assert theirs.std() > 0.01
    assert own.shape == theirs.shape == (2, *stage.image_shape)
    assert_close(own, theirs, **TOLERANCE)
