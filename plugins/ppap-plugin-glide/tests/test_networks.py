"""What the published fixtures do not say of the networks: refusals, casts, layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap_framework.errors import UsageError
from ppap_plugin_glide import build
from ppap_plugin_glide.unet import EncodedText, TextUNet

BASE = "glide_text2im.text2im_model.Text2ImUNet"
UPSAMPLER = "glide_text2im.text2im_model.SuperResText2ImUNet"
INPAINTING = "glide_text2im.text2im_model.InpaintText2ImUNet"
UPSAMPLING_INPAINTING = "glide_text2im.text2im_model.SuperResInpaintText2ImUnet"
CLIP = "glide_text2im.clip.model_creation.CLIPModel"
CONFIG: dict[str, Any] = {
    "text_ctx": 6,
    "xf_width": 16,
    "xf_layers": 1,
    "xf_heads": 2,
    "xf_final_ln": True,
    "xf_padding": True,
    "tokenizer": {"n_vocab": 20},
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
}
CLIP_CONFIG: dict[str, Any] = {
    "logit_scale": 100.0,
    "beta_schedule": "squaredcos_cap_v2",
    "n_timesteps": 100,
    "image_size": 8,
    "patch_size": 4,
    "n_vocab": 20,
    "max_text_len": 6,
    "n_embd": 12,
    "n_head_state_text": 8,
    "n_head_text": 2,
    "n_xf_blocks_text": 1,
    "n_head_state_image": 8,
    "n_head_image": 3,
    "n_xf_blocks_image": 1,
}
TOKENS = torch.tensor([[3, 4, 5, 19, 19, 19], [7, 19, 19, 19, 19, 19], [19] * 6])
MASK = TOKENS != 19


def randomised(official_class: str, config: dict[str, Any] = CONFIG) -> Any:
    """The network without its zeroed layers, which would make its output zero."""
    generator = torch.Generator().manual_seed(0)
    network = build(official_class, config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def images(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 8, 8, generator=generator), torch.arange(batch) * 400.5


def test_images_and_texts_are_independent_of_their_neighbours() -> None:
    network = randomised(UPSAMPLER)
    x, timesteps = images()
    low_res = x[..., ::2, ::2]
    with torch.no_grad():
        together = network(x, timesteps, low_res=low_res, tokens=TOKENS, mask=MASK)
        alone = [
            network(
                x[[i]], timesteps[[i]], low_res=low_res[[i]], tokens=TOKENS[[i]], mask=MASK[[i]]
            )
            for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_one_reading_of_a_text_serves_every_timestep() -> None:
    network: TextUNet = randomised(BASE)
    x, timesteps = images()
    text = network.encode_text(TOKENS, MASK)
    for t in (timesteps, timesteps.flip(0)):
        expected = network(x, t, tokens=TOKENS, mask=MASK)
        torch.testing.assert_close(network.predict(x, t, text), expected, rtol=0, atol=0)


def test_readings_join_as_batches() -> None:
    network: TextUNet = randomised(BASE)
    joined = EncodedText.joined(
        network.encode_text(TOKENS[:1], MASK[:1]), network.encode_text(TOKENS[1:], MASK[1:])
    )
    expected = network.encode_text(TOKENS, MASK)
    torch.testing.assert_close(joined.pooled, expected.pooled)
    torch.testing.assert_close(joined.tokens, expected.tokens)


def test_what_padding_holds_does_not_matter() -> None:
    network: TextUNet = randomised(BASE)
    other = torch.where(MASK, TOKENS, 11)
    expected = network.encode_text(TOKENS, MASK)
    torch.testing.assert_close(network.encode_text(other, MASK).tokens, expected.tokens)
    moved = network.encode_text(torch.where(MASK, TOKENS + 1, TOKENS), MASK)
    assert (moved.tokens - expected.tokens).flatten(1).norm(dim=1)[:2].min() > 0.1


def test_a_mask_is_needed_where_padding_has_an_embedding() -> None:
    with pytest.raises(UsageError, match="mask of the text is missing"):
        build(BASE, CONFIG).encode_text(TOKENS)
    plain: Any = randomised(BASE, CONFIG | {"xf_padding": False})
    assert torch.equal(plain.encode_text(TOKENS).pooled, plain.encode_text(TOKENS, MASK).pooled)


@pytest.mark.parametrize("official_class", [INPAINTING, UPSAMPLING_INPAINTING])
def test_nothing_known_is_a_mask_of_zeros(official_class: str) -> None:
    network = randomised(official_class)
    x, timesteps = images()
    given: dict[str, Any] = {"tokens": TOKENS, "mask": MASK}
    if official_class == UPSAMPLING_INPAINTING:
        given["low_res"] = x[..., ::2, ::2]
    nothing = {"inpaint_image": torch.ones_like(x), "inpaint_mask": torch.zeros(3, 1, 8, 8)}
    with torch.no_grad():
        bare = network(x, timesteps, **given)
        assert torch.equal(bare, network(x, timesteps, **given, **nothing))
        nothing["inpaint_mask"][:, :, :4] = 1.0
        assert not torch.allclose(bare, network(x, timesteps, **given, **nothing))


def test_channels_below_the_noisy_image() -> None:
    network = randomised(UPSAMPLING_INPAINTING)
    x, timesteps = images()
    seen: list[Tensor] = []
    network.input_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mask = torch.zeros(3, 1, 8, 8)
    mask[..., :3] = 1.0
    network(
        x,
        timesteps,
        inpaint_image=torch.full_like(x, 0.25),
        inpaint_mask=mask,
        low_res=torch.full((3, 3, 4, 4), 0.5),
        tokens=TOKENS,
        mask=MASK,
    )
    expected = torch.cat([x, 0.25 * mask.expand_as(x), mask, torch.full_like(x, 0.5)], dim=1)
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(dtype: torch.dtype) -> None:
    network = randomised(BASE)
    x, timesteps = images()
    with torch.no_grad():
        exact = network(x, timesteps, tokens=TOKENS, mask=MASK)
        network.cast(dtype)
        assert network.token_embedding.weight.dtype == dtype
        assert network.positional_embedding.dtype == torch.float32
        rounded = network(x, timesteps, tokens=TOKENS, mask=MASK)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.1


def test_a_frozen_network_passes_gradients_to_its_input() -> None:
    network = randomised(BASE).requires_grad_(False)
    x, timesteps = images()
    x.requires_grad_()
    output = network(x, timesteps, tokens=TOKENS, mask=MASK)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    assert gradient.abs().amin(dim=(1, 2, 3)).gt(0).all()


class TestNoisedClip:
    def test_embeddings_have_length_one(self) -> None:
        clip = randomised(CLIP, CLIP_CONFIG)
        x, _ = images()
        seen = clip.embed_images(x, torch.tensor([0, 40, 99]))
        said = clip.embed_texts(TOKENS, torch.tensor([4, 2, 1]))
        assert seen.shape == said.shape == (3, 12)
        torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(said.norm(dim=1), torch.ones(3))

    def test_what_follows_a_text_does_not_matter(self) -> None:
        clip = randomised(CLIP, CLIP_CONFIG)
        lengths = torch.tensor([4, 2, 1])
        follows = torch.arange(6) >= lengths[:, None]
        expected = clip.embed_texts(TOKENS, lengths)
        torch.testing.assert_close(
            clip.embed_texts(torch.where(follows, 0, TOKENS), lengths), expected
        )

    def test_the_timestep_matters(self) -> None:
        clip = randomised(CLIP, CLIP_CONFIG)
        x, _ = images()
        early, late = (clip.embed_images(x, torch.full((3,), t)) for t in (0, 99))
        assert (early - late).norm(dim=1).min() > 0.01

    def test_an_encoder_is_built_from_either_configuration(self) -> None:
        own = {
            "image_size": 8,
            "patch_size": 4,
            "n_embd": 12,
            "n_head": 3,
            "n_xf_blocks": 1,
            "n_head_state": 8,
            "n_timestep": 100,
        }
        name = "glide_text2im.clip.encoders.ImageEncoder"
        shapes = [
            {key: tensor.shape for key, tensor in build(name, config).state_dict().items()}
            for config in (own, CLIP_CONFIG)
        ]
        assert shapes[0] == shapes[1]
        assert f"image_encoder.{next(iter(shapes[0]))}" in build(CLIP, CLIP_CONFIG).state_dict()


@pytest.mark.parametrize(
    ("official_class", "change", "complaint"),
    [
        ("glide_text2im.unet.UNet", {}, "network class 'glide_text2im.unet.UNet' is unknown"),
        (BASE, {"image_size": 64}, "no argument image_size"),
        (BASE, {"use_new_attention_order": False}, "no argument use_new_attention_order"),
        (BASE, {"xf_heads": 3}, "'xf_width' 16 does not divide into 3"),
        (BASE, {"xf_layers": 0}, "'xf_layers' must be > 0"),
        (BASE, {"tokenizer": "gpt2"}, "'tokenizer' must be an object with n_vocab"),
        (BASE, {"tokenizer": {"n_vocab": 0}}, "'tokenizer' must be > 0"),
        (BASE, {"model_channels": 48}, "a level of 48 channels"),
        (CLIP, {"patch_size": 3}, "'image_size' 8 does not divide into patches 3"),
        (CLIP, {"logit_scale": 0.0}, "'logit_scale' must be > 0"),
        (CLIP, {"colour": 1}, "no argument colour"),
    ],
)
def test_impossible_networks_are_refused(
    official_class: str, change: dict[str, Any], complaint: str
) -> None:
    config = CLIP_CONFIG if official_class == CLIP else CONFIG
    with pytest.raises(UsageError, match=complaint):
        build(official_class, config | change)
