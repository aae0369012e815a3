"""The embedded latent world: the default of this backend, and an ordinary pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import LDMPipeline
from tiny_pipelines import drawn, noise_of
from torch.testing import assert_close

import ppap_framework as ppap

shapes = pytest.importorskip("ppap_plugin_shapes", reason="the plugin that embeds it")
FOLDER = Path(shapes.__file__).parent / "weights" / "shapes-latent"


@pytest.fixture(scope="module")
def found() -> ppap.LoadedBackend:
    return ppap.backend("diffusers")


def test_card_and_folder_are_the_same(found: ppap.LoadedBackend) -> None:
    (stage,) = found.stages
    assert (stage.latent_shape, stage.image_shape) == ((4, 16, 16), (3, 64, 64))
    assert stage.network.denoiser.conv_in.weight.dtype == torch.float32
    for name in ("shapes-latent", FOLDER):
        other = ppap.backend("diffusers", checkpoint=name)
        assert other.origin.weights_sha256 == found.origin.weights_sha256
    cast = ppap.backend("diffusers", checkpoint="shapes-latent", dtype="float16").stages[0]
    assert cast.network.denoiser.conv_in.weight.dtype == torch.float16


def test_unguided_images_are_the_pipeline_s(found: ppap.LoadedBackend) -> None:
    (stage,) = found.stages
    own = ppap.sample(found, num=2, steps=5, sampler="ddim").images_01
    theirs = drawn(LDMPipeline.from_pretrained(FOLDER), noise_of(stage.shape), 5)
    assert_close(own, theirs, atol=1e-4, rtol=0.0)


def test_an_unknown_name_is_neither_card_nor_folder() -> None:
    with pytest.raises(ppap.PpapError, match="neither a folder that exists nor a name of the hub"):
        ppap.backend("diffusers", checkpoint="shapes-latents")
