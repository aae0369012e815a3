"""Inpainting networks: what they are told, what they keep, and which belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from glide_files import (
    BASE,
    INPAINT_UPSAMPLER,
    UPSAMPLER,
    inpainting,
    stage,
    stated,
)
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.checkpoints import join_checkpoints, open_checkpoint
from ppap_framework.components import CascadedStage, CascadeSampling
from ppap_framework.errors import AssetError
from ppap_framework.known import Known
from ppap_plugin_glide import released
from ppap_plugin_glide.backend import GlideBackend, make_glide
from ppap_plugin_glide.options import GlideOptions

PROMPTS = ["a cat", "", "a red cube on a mat"]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> GlideBackend:
    return make_glide(GlideOptions(cfg=3.0), inpainting(tmp_path_factory.mktemp("glide")))


def known() -> Known:
    generator = torch.Generator().manual_seed(2)
    unknown = torch.zeros(1, 1, 8, 8)
    unknown[..., 2:4, 3:7] = 1.0
    return Known(x0=torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1, unknown=unknown)


def noisy(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, size, size, generator=generator), torch.tensor([1, 40, 99])


def fed(size: int) -> dict[str, torch.Tensor]:
    """The published arguments, for three images: the mask is 1 where pixels are known."""
    picture, unknown = known().x0, known().unknown
    if size == 4:
        picture = F.interpolate(picture, (4, 4), mode="bicubic", antialias=True).clamp(-1, 1)
        unknown = F.max_pool2d(unknown, 2)
    image, mask = picture.expand(3, -1, -1, -1), (1 - unknown).expand(3, -1, -1, -1)
    return {"inpaint_image": image, "inpaint_mask": mask}


class TestStages:
    def test_the_base_reads_what_is_known(self, backend: GlideBackend) -> None:
        (x_t, t), network, given = noisy(4), backend.stages[0].network, fed(4)
        says = []
        with torch.no_grad():
            for prompts in (PROMPTS, [""] * 3):
                texts = backend.encode(prompts, 3).texts
                says.append(network(x_t, t, tokens=texts.tokens, mask=texts.mask, **given))
        condition = backend.inpainting(backend.encode(PROMPTS, 3), known())
        prediction = backend.stages[0].denoise(x_t, t, condition)
        white = given["inpaint_mask"] == 0
        eps = says[1][:, :3] + 3.0 * (says[0] - says[1])[:, :3]
        three = white.expand(-1, 3, -1, -1)
        torch.testing.assert_close(prediction.eps[three], eps[three], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(prediction.variance, says[0][:, 3:], atol=1e-3, rtol=1e-3)
        assert torch.equal(prediction.x0[~three], given["inpaint_image"][~three])
        plain = backend.stages[0].denoise(x_t, t, backend.encode(PROMPTS, 3))
        assert (plain.eps - prediction.eps)[three].abs().max() > 0.01

    def test_the_upsampler_reads_the_picture_and_the_smaller_image(
        self, backend: GlideBackend
    ) -> None:
        (x_t, t), upsampler, given = noisy(8), backend.stages[1], fed(8)
        assert isinstance(upsampler, CascadedStage)
        condition = backend.inpainting(backend.encode(PROMPTS, 3), known())
        told = upsampler.conditioned(condition, torch.zeros(3, 3, 4, 4))
        texts = told.texts
        with torch.no_grad():
            says = upsampler.network(
                x_t, t, low_res=told.low_res, tokens=texts.tokens, mask=texts.mask, **given
            )
        prediction = upsampler.denoise(x_t, t, told)
        three = (given["inpaint_mask"] == 0).expand(-1, 3, -1, -1)
        torch.testing.assert_close(prediction.eps[three], says[:, :3][three], atol=1e-4, rtol=1e-4)
        assert torch.equal(prediction.x0[~three], given["inpaint_image"][~three])

    def test_nothing_known_is_a_mask_of_zeros(self, backend: GlideBackend) -> None:
        (x_t, t), texts = noisy(4), backend.encode(None, 3).texts
        with torch.no_grad():
            zeros = {
                "inpaint_image": torch.zeros(3, 3, 4, 4),
                "inpaint_mask": torch.zeros(3, 1, 4, 4),
            }
            says = backend.stages[0].network(x_t, t, tokens=texts.tokens, mask=texts.mask, **zeros)
        without = backend.encode(None, 3)
        nothing = Known(x0=known().x0, unknown=torch.ones(1, 1, 8, 8))
        for condition in (without, backend.inpainting(without, nothing)):
            prediction = backend.stages[0].denoise(x_t, t, condition)
            torch.testing.assert_close(prediction.eps, says[:, :3], atol=1e-4, rtol=1e-4)


def test_both_stages_keep_the_black_pixels_and_guides_steer_the_others(
    backend: GlideBackend,
) -> None:
    brighter = guide_of(
        lambda x, _: x.mean((1, 2, 3)), lambda p, t: (p - t).square(), torch.ones(1), scale=200.0
    )
    black = known().unknown[0, 0] == 0
    how: dict[str, Any] = {"num": 2, "steps": 6, "prompt": "a cat", "sampler": "ddpm"}
    how |= {"init_image": known().x0[0], "mask": ~black}
    filled = ppap.sample(backend, [brighter], **how, compare=True)
    assert filled.unguided is not None
    assert filled.plan.indices == (5, 4, 3, 2, 1, 0)  # without resampling
    for pictures in (filled.guided, filled.unguided):
        kept = known().x0[0][:, black].expand(2, -1, -1)
        torch.testing.assert_close(pictures.images[..., black], kept, atol=1e-5, rtol=0)
    given = fed(4)
    small, white = filled.guided.earlier["base"], given["inpaint_mask"][0, 0] == 0
    assert torch.equal(small[..., ~white], given["inpaint_image"][:2][..., ~white])
    assert (small - filled.unguided.earlier["base"])[..., white].mean() > 0.01
    alone = ppap.sample(backend, [brighter], **how, batch=1)
    torch.testing.assert_close(alone.images, filled.images, atol=2 / 255, rtol=0)


class TestCheckpoints:
    def test_the_published_recipe_is_the_default(self, tmp_path: Path) -> None:
        large = stage(INPAINT_UPSAMPLER, 8, process={"schedule": "linear", "timesteps": 1000})
        upsampler = make_glide(GlideOptions(), inpainting(tmp_path, upsampler=large)).stages[1]
        assert isinstance(upsampler, CascadedStage)
        assert upsampler.sampling == CascadeSampling(respacing="fast27", eta=1.0, temperature=0.997)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"base": stage(BASE, 4)}, "only the upsampler inpaints"),
            ({"upsampler": stage(UPSAMPLER, 8)}, "only the base inpaints"),
            ({"base": stage(INPAINT_UPSAMPLER, 4)}, f"'base' is a {INPAINT_UPSAMPLER}"),
        ],
    )
    def test_what_does_not_belong_together(
        self, tmp_path: Path, change: dict[str, Any], expected: str
    ) -> None:
        with pytest.raises(AssetError) as caught:
            make_glide(GlideOptions(), inpainting(tmp_path, **change))
        assert expected in caught.value.message
        assert "\n" not in str(caught.value)

    def test_two_published_files_draw_as_one(self, tmp_path: Path, backend: GlideBackend) -> None:
        whole, parts = inpainting(tmp_path).state_dict(), stated()
        named = {card.name: card for card in released.cards()}
        opened = []
        for name in ("base", "upsample"):
            card = named[f"glide-{name}-inpaint"]
            [key] = {*card.architecture} - {"tokenizer"}
            part = {
                k.removeprefix(card.prefix): v
                for k, v in whole.items()
                if k.startswith(card.prefix)
            }
            torch.save({k: v.clone() for k, v in part.items()}, tmp_path / f"{name}.pt")
            small = parts[key] | {"official_class": card.architecture[key]["official_class"]}
            small = {key: small, "tokenizer": parts["tokenizer"]}
            like = attrs.evolve(card, architecture=small)
            opened.append(open_checkpoint(tmp_path / f"{name}.pt", like=like))
        assert card.joined == "glide-base-inpaint+glide-upsample-inpaint"
        joined = make_glide(GlideOptions(cfg=3.0), join_checkpoints(opened))
        condition = backend.inpainting(backend.encode(PROMPTS, 3), known())
        for size, ours, theirs in zip((4, 8), joined.stages, backend.stages, strict=True):
            told = condition
            if isinstance(ours, CascadedStage):
                told = ours.conditioned(condition, torch.zeros(3, 3, 4, 4))
            says = [each.denoise(*noisy(size), told).x0 for each in (ours, theirs)]
            assert torch.equal(*says)
