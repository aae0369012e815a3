"""The embedded ADM as an ordinary pipeline of diffusers: its weights in a `UNet2DModel`, which is
an independent oracle of the network, and its bundles of experts there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import ppap_framework as ppap

pytest.importorskip("ppap_plugin_shapes", reason="the plugin that embeds ADM's weights")
pytest.importorskip("ppap_plugin_adm")

HEADS, STEPS = 4, 5
CONFIG: dict[str, Any] = {
    "sample_size": 32,
    "out_channels": 6,
    "layers_per_block": 1,
    "block_out_channels": (64, 64, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
    "attn_norm_num_groups": 32,
    "resnet_time_scale_shift": "scale_shift",
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
PLACES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
BLOCKS = {
    "input_blocks.1": "down_blocks.0.*.0",
    "input_blocks.3": "down_blocks.1.*.0",
    "input_blocks.5": "down_blocks.2.*.0",
    **{f"output_blocks.{i}": f"up_blocks.{i // 2}.*.{i % 2}" for i in range(6)},
}


def renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the embedded ADM by their names in a `UNet2DModel`."""
    for name, tensor in state.items():
        whole, _, kind = name.rpartition(".")
        if whole in PLACES:
            yield f"{PLACES[whole]}.{kind}", tensor
            continue
        block, part, layer = whole.split(".", 2) if "middle" in whole else _split(whole)
        if block == "middle_block":
            place = f"mid_block.{'attentions.0' if part == '1' else f'resnets.{int(part) // 2}'}"
        else:
            place = BLOCKS[block].replace("*", "attentions" if part == "1" else "resnets")
        if layer == "qkv":  # by head, then q, k and v
            parts = tensor.view(HEADS, 3, -1, *tensor.shape[1:2])
            for index, letter in enumerate("qkv"):
                yield f"{place}.to_{letter}.{kind}", parts[:, index].flatten(0, 1)
        elif part == "1":
            of = {"norm": "group_norm", "proj_out": "to_out.0"}[layer]
            yield f"{place}.{of}.{kind}", tensor.squeeze(-1) if layer == "proj_out" else tensor
        else:
            yield f"{place}.{RESIDUAL[layer]}.{kind}", tensor


def _split(whole: str) -> tuple[str, str, str]:
    first, number, part, layer = whole.split(".", 3)
    return f"{first}.{number}", part, layer


def fill_resampling(network: Any) -> None:
    """ADM averages 2 x 2 pixels, and repeats them; diffusers convolves as well."""
    for module in network.modules():
        kind, convolution = type(module).__name__, getattr(module, "conv", None)
        if kind in ("Downsample2D", "Upsample2D"):
            weight = torch.zeros_like(convolution.weight)
            own = torch.arange(len(weight))
            if kind == "Downsample2D":
                weight[own, own, 1:, 1:] = 0.25
            else:
                weight[own, own, 1, 1] = 1.0
            convolution.weight.data = weight
            convolution.bias.data.zero_()


@pytest.fixture(scope="module")
def adm() -> ppap.LoadedBackend:
    return ppap.backend("adm")


@pytest.fixture(scope="module")
def pipe(adm: ppap.LoadedBackend) -> Any:
    network = diffusers.UNet2DModel(**CONFIG)
    fill_resampling(network)
    (stage,) = adm.stages
    found = dict(renamed(stage.network.state_dict()))
    told = network.load_state_dict(found, strict=False)
    assert not told.unexpected_keys
    assert all("sampl" in name for name in told.missing_keys)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        variance_type="learned_range",
    )
    return diffusers.DDPMPipeline(network.eval(), scheduler)


def test_the_network_is_the_same(adm: ppap.LoadedBackend, pipe: Any) -> None:
    (stage,) = adm.stages
    x_t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 700])
    with torch.no_grad():
        own, theirs = stage.network(x_t, t), pipe.unet(x_t, t).sample
    assert_close(own, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("guider", ["classifier", "depth", "segmentation"])
def test_its_experts_guide_there(adm: ppap.LoadedBackend, pipe: Any, guider: str) -> None:
    """Identities differ, since layouts do, and so must be allowed; the images are the same."""
    experts = f"shapes-{guider}-5"
    there = ppap.guide(guider, experts=experts, allow_mismatch=["backend"])
    how: dict[str, Any] = {"num": 2, "steps": STEPS, "sampler": "ddim", "seed": 5}
    own = ppap.sample(adm, [ppap.guide(guider, experts=experts)], **how)
    theirs = ppap.sample(ppap.backend(pipe), [there], **how)
    assert own.plan.process.timesteps == theirs.plan.process.timesteps
    unguided = ppap.sample(adm, **how).images_01
    assert (own.images_01 - unguided).abs().mean() > 0.01
    difference = (own.images_01 - theirs.images_01).abs()  # by rounding, which guides amplify
    assert difference.mean() < 5e-4
    assert difference.max() < 0.02
