from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppap_plugin_adm.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TorsoBlock,
    Upsample,
    timestep_embedding,
)

FORMATS = [torch.contiguous_format, torch.channels_last]


def randomised(module: nn.Module) -> nn.Module:
    """The module without its zeroed layers, which would hide what comes before them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


@given(t=st.floats(0, 1000), dim=st.integers(4, 33))
def test_timestep_embedding_is_cosines_then_sines(t: float, dim: int) -> None:
    half = dim // 2
    frequencies = [10_000 ** (-i / half) for i in range(half)]
    expected = [math.cos(t * w) for w in frequencies] + [math.sin(t * w) for w in frequencies]
    embedding = timestep_embedding(torch.tensor([t], dtype=torch.float64), dim)
    assert embedding.dtype == torch.float32
    assert embedding[0, : 2 * half].tolist() == pytest.approx(expected, abs=3e-4)
    assert embedding[0, 2 * half :].tolist() == [0.0] * (dim % 2)


def attention_of_one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(c, L), (c, S), (c, S) to (c, L), as the definition has it."""
    weights = torch.softmax(q.T @ k / math.sqrt(len(q)), dim=1)
    return v @ weights.T


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("with_context", [False, True])
def test_attention_matches_its_definition(new_order: bool, with_context: bool) -> None:
    torch.manual_seed(0)
    channels, heads, width = 32, 4, 12
    c = channels // heads
    block = AttentionBlock(
        channels, heads, new_order=new_order, context_channels=width if with_context else None
    )
    randomised(block).double()
    h = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    context = torch.randn(2, 7, width, dtype=torch.float64) if with_context else None

    def rows(part: int, head: int, parts: int) -> slice:
        start = (part * heads + head if new_order else head * parts + part) * c
        return slice(start, start + c)

    expected = []
    for i in range(2):
        qkv = block.qkv(block.norm(h)[i].flatten(1))
        attended = []
        for head in range(heads):
            q, k, v = (qkv[rows(part, head, 3)] for part in range(3))
            if block.encoder_kv is not None and context is not None:
                kv = block.encoder_kv(context[i].T)
                k = torch.cat([kv[rows(0, head, 2)], k], dim=1)
                v = torch.cat([kv[rows(1, head, 2)], v], dim=1)
            attended.append(attention_of_one_head(q, k, v))
        expected.append(h[i] + block.proj_out(torch.cat(attended)).view_as(h[i]))
    torch.testing.assert_close(block(h, torch.empty(2, 0), context), torch.stack(expected))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "block",
    [
        ResBlock(32, 64, 8),
        ResBlock(32, 32, 8, scale_shift=True, resample=Upsample(32, use_conv=False)),
        AttentionBlock(32, 2),
        TorsoBlock(Downsample(32, use_conv=True)),
        TorsoBlock(Downsample(32, use_conv=False)),
        TorsoBlock(Upsample(32, use_conv=True)),
    ],
    ids=lambda block: type(block).__name__,
)
def test_blocks_keep_the_memory_format(
    block: nn.Module, memory_format: torch.memory_format
) -> None:
    h = torch.randn(2, 32, 6, 4).to(memory_format=memory_format).requires_grad_()
    output = block.to(memory_format=memory_format)(h, torch.randn(2, 8))
    assert output.is_contiguous(memory_format=memory_format)
    (gradient,) = torch.autograd.grad(output.square().sum(), h)
    assert gradient.is_contiguous(memory_format=memory_format)


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 5),
    width=st.integers(2, 5),  # torch refuses to normalise a single value a group
    scale_shift=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_fresh_downsampling_block_is_the_mean_of_pixels(
    height: int, width: int, scale_shift: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    block = ResBlock(32, 32, 8, scale_shift=scale_shift, resample=Downsample(32, use_conv=False))
    h = torch.randn(1, 32, 2 * height, 2 * width)
    expected = h.view(1, 32, height, 2, width, 2).mean(dim=(3, 5))
    torch.testing.assert_close(block(h, torch.randn(1, 8)), expected)


@pytest.mark.parametrize("training", [False, True])
def test_recomputation_changes_memory_and_nothing_else(training: bool) -> None:
    torch.manual_seed(0)
    layers = randomised(nn.ModuleList([ResBlock(32, 32, 8), AttentionBlock(32, 2)]))
    h, embedding = torch.randn(2, 32, 4, 4), torch.randn(2, 8)
    evaluations: list[int] = []
    next(layers.children()).register_forward_pre_hook(lambda *_: evaluations.append(1))
    gradients = []
    for recompute in (False, True):
        evaluations.clear()
        block = TorsoBlock(*layers, recompute=recompute).train(training)
        loss = block(h, embedding).square().sum()
        gradients.append(torch.autograd.grad(loss, list(block.parameters())))
        assert len(evaluations) == (2 if recompute and training else 1)
    torch.testing.assert_close(gradients[0], gradients[1])
