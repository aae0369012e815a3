from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap_framework.errors import UsageError
from ppap_plugin_adm import build
from ppap_plugin_adm.classifier import AttentionPool

CLASSIFIER = "guided_diffusion.unet.EncoderUNetModel"
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 5,
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
}


def test_attention_pooling_is_full_attention_read_at_the_mean() -> None:
    torch.manual_seed(0)
    size, channels, heads = 3, 32, 4
    pool = AttentionPool(size, channels, heads, 7).double()
    h = torch.randn(2, channels, size, size, dtype=torch.float64)

    tokens = torch.cat([h.mean(dim=(2, 3))[:, :, None], h.flatten(2)], dim=2)
    tokens = tokens + pool.positional_embedding
    reference = nn.MultiheadAttention(channels, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(pool.qkv_proj.weight[:, :, 0])
        reference.in_proj_bias.copy_(pool.qkv_proj.bias)
        reference.out_proj.weight.copy_(torch.eye(channels))
        reference.out_proj.bias.zero_()
    sequence = tokens.transpose(1, 2)
    attended, _ = reference(sequence, sequence, sequence)
    torch.testing.assert_close(pool(h), pool.c_proj(attended.transpose(1, 2))[:, :, 0])


@pytest.mark.parametrize("image_size", [8, 16])
def test_attention_pooling_fixes_the_image_size(image_size: int) -> None:
    network = build(CLASSIFIER, CONFIG | {"pool": "attention", "image_size": image_size})
    assert network.state_dict()["out.2.positional_embedding"].shape == (
        64,
        (image_size // 2) ** 2 + 1,
    )
    assert network(torch.randn(2, 3, image_size, image_size), torch.zeros(2)).shape == (2, 5)


@pytest.mark.parametrize(
    ("pool", "names"),
    [("spatial", ["out.0", "out.2"]), ("spatial_v2", ["out.0", "out.1", "out.3"])],
)
def test_spatial_pooling_reads_the_mean_of_every_block(pool: str, names: list[str]) -> None:
    torch.manual_seed(0)
    network = build(CLASSIFIER, CONFIG | {"pool": pool}).eval()
    heads = [name.rsplit(".", 1)[0] for name in network.state_dict() if name.startswith("out.")]
    assert list(dict.fromkeys(heads)) == names

    means: list[Tensor] = []
    for block in [*network.input_blocks, network.middle_block]:
        block.register_forward_hook(lambda _, args, output: means.append(output.mean(dim=(2, 3))))
    logits = network(torch.randn(2, 3, 8, 8), torch.tensor([10, 20]))
    features = torch.cat(means, dim=1)
    assert features.shape == (2, 32 + 32 + 32 + 64 + 64)  # conv-in, level, down, level, middle
    hidden = network.out[0](features)
    if pool == "spatial":
        expected = network.out[2](hidden.relu())
    else:
        groups = hidden.view(2, 32, 64)
        centred = groups - groups.mean(dim=2, keepdim=True)
        normed = (centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()).flatten(1)
        expected = network.out[3](normed * normed.sigmoid())
    torch.testing.assert_close(logits, expected)


def test_attention_pooling_needs_head_channels_that_fit() -> None:
    with pytest.raises(UsageError, match="64 channels do not divide"):
        build(CLASSIFIER, CONFIG | {"pool": "attention", "num_head_channels": 48})
