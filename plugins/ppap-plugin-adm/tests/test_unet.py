from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap_framework.errors import UsageError
from ppap_plugin_adm import build
from ppap_plugin_adm.blocks import AttentionBlock
from ppap_plugin_adm.trunk import Trunk

UNET = "guided_diffusion.unet.UNetModel"
SUPER_RES = "guided_diffusion.unet.SuperResModel"
CLASSIFIER = "guided_diffusion.unet.EncoderUNetModel"
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
}


def randomised(network: Trunk) -> Trunk:
    """The network without its zeroed layers, which would make its output zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def images(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 8, 8, generator=generator), torch.arange(batch) * 400.5


@pytest.mark.parametrize("official_class", [UNET, CLASSIFIER])
def test_a_fresh_network_outputs_zero(official_class: str) -> None:
    output = build(official_class, CONFIG)(*images())
    assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("conv_resample", [False, True])
@pytest.mark.parametrize(
    "flags",
    [
        {"use_scale_shift_norm": True, "num_heads": 2, "num_heads_upsample": 4},
        {"channel_mult": [0.5, 1, 1], "model_channels": 64, "attention_resolutions": [1, 4]},
        {"num_head_channels": 8, "use_new_attention_order": True, "num_res_blocks": 2},
    ],
    ids=str,
)
def test_every_flag_gives_a_network_whose_images_are_independent(
    updown: bool, conv_resample: bool, flags: dict[str, Any]
) -> None:
    config = CONFIG | flags | {"resblock_updown": updown, "conv_resample": conv_resample}
    network = randomised(build(UNET, config))
    x, timesteps = images(3)
    with torch.no_grad():
        together = network(x, timesteps)
        alone = torch.cat([network(x[[i]], timesteps[[i]]) for i in range(3)])
    assert together.shape == x.shape
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_bare_resampling_has_no_parameters_but_takes_its_slot() -> None:
    names = build(UNET, CONFIG | {"conv_resample": False}).state_dict()
    assert not any(name.startswith(("input_blocks.2.", "output_blocks.1.2.")) for name in names)
    assert "input_blocks.3.0.in_layers.0.weight" in names


def test_decoder_attention_follows_num_heads_upsample() -> None:
    network = build(UNET, CONFIG | {"num_heads": 2, "num_heads_upsample": 4})
    heads = {n: m.heads for n, m in network.named_modules() if isinstance(m, AttentionBlock)}
    assert heads == {
        "input_blocks.3.1": 2,
        "middle_block.1": 2,
        "output_blocks.0.1": 4,
        "output_blocks.1.1": 4,
    }


def test_low_resolution_images_are_stacked_after_x() -> None:
    network = build(SUPER_RES, CONFIG)
    x, timesteps = images()
    seen: list[Tensor] = []
    network.input_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(x, timesteps, torch.full((2, 3, 4, 4), 0.5))
    assert torch.equal(seen[0], torch.cat([x, torch.full_like(x, 0.5)], dim=1))


def test_the_torso_alone_computes_in_half_precision() -> None:
    network = randomised(build(UNET, CONFIG | {"use_fp16": True}))
    x, timesteps = images()
    with torch.no_grad():
        exact = network(x, timesteps)
        for dtype, tolerance in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
            network.cast_torso(dtype)
            halved = {n for n, p in network.named_parameters() if p.dtype == dtype}
            assert network.torso_dtype == dtype
            assert "middle_block.1.qkv.weight" in halved
            assert not any(n.startswith(("out.", "time_embed.")) or "norm" in n for n in halved)
            rounded = network(x, timesteps)
            assert rounded.dtype == torch.float32
            error = (rounded - exact).norm() / exact.norm()
            assert 0 < error < tolerance
    network.cast_torso(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_double_precision_runs_throughout() -> None:
    network = randomised(build(UNET, CONFIG))
    x, timesteps = images()
    single = network(x, timesteps)
    double = network.double()(x.double(), timesteps)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-4)


def test_channels_last_survives_the_whole_network() -> None:
    network = randomised(build(UNET, CONFIG | {"resblock_updown": True}))
    x, timesteps = images()
    expected = network(x, timesteps)
    network.to(memory_format=torch.channels_last)
    maps: list[Tensor] = []
    for block in [*network.input_blocks, network.middle_block, *network.output_blocks]:
        block.register_forward_hook(lambda _, args, output: maps.extend([args[0], output]))
    output = network(x.contiguous(memory_format=torch.channels_last), timesteps)
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in [*maps, output])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("official_class", [UNET, CLASSIFIER])
def test_a_frozen_network_passes_gradients_to_its_input(official_class: str) -> None:
    network = randomised(build(official_class, CONFIG)).requires_grad_(False)
    x, timesteps = images()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, timesteps).square().sum(), x)
    assert gradient.abs().amin(dim=(1, 2, 3)).gt(0).all()


def test_recomputation_in_training_leaves_gradients_as_they_are() -> None:
    x, timesteps = images()
    gradients = []
    for use_checkpoint in (False, True):
        network = randomised(build(UNET, CONFIG | {"use_checkpoint": use_checkpoint})).train()
        loss = network(x, timesteps).square().mean()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_compiles_into_one_graph() -> None:
    network = randomised(build(UNET, CONFIG | {"num_classes": 5}))
    x, timesteps = images()
    y = torch.tensor([0, 4])
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, timesteps, y), network(x, timesteps, y))


@pytest.mark.parametrize(
    ("num_classes", "y", "complaint"),
    [
        (None, torch.zeros(2, dtype=torch.long), "network without classes"),
        (5, None, "got no class labels"),
        (5, torch.zeros(1, dtype=torch.long), r"shape \(1,\), timesteps \(2,\)"),
    ],
)
def test_labels_must_fit_the_network(
    num_classes: int | None, y: Tensor | None, complaint: str
) -> None:
    network = build(UNET, CONFIG | {"num_classes": num_classes})
    with pytest.raises(UsageError, match=complaint):
        network(*images(), y)


@pytest.mark.parametrize(
    ("official_class", "change", "complaint"),
    [
        ("guided_diffusion.unet.Unet", {}, "network class 'guided_diffusion.unet.Unet' is unknown"),
        (UNET, {"pool": "attention"}, "no argument pool"),
        (CLASSIFIER, {"num_classes": 10, "width": 1}, "no argument num_classes, width"),
        (CLASSIFIER, {"pool": "max"}, "'pool' must be in"),
        (UNET, {"dims": 3}, "'dims' must be in"),
        (UNET, {"channel_mult": []}, "channel_mult"),
        (UNET, {"attention_resolutions": "32,16"}, "attention_resolutions"),
        (UNET, {"num_heads": 0}, "'num_heads' must be > 0"),
        (UNET, {"model_channels": 48}, "a level of 48 channels"),
        (UNET, {"num_head_channels": 24}, "64 channels do not divide into attention heads"),
        (UNET, {"num_heads": 3}, "64 channels do not divide into attention heads"),
    ],
)
def test_impossible_networks_are_refused(
    official_class: str, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        build(official_class, CONFIG | change)


def test_a_missing_argument_is_named() -> None:
    config = {name: value for name, value in CONFIG.items() if name != "out_channels"}
    with pytest.raises(UsageError, match="out_channels"):
        build(UNET, config)
