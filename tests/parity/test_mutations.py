"""Plants the mistakes that `tiny/mutation_sensitivity.json` lists into the networks.

The file states how far each mistake moves each case's output when the published code makes it. Our
code, making the same mistake, must move as far: so the mutated lines run, the network tests would
notice, and a case that the file calls blind to a mistake is blind to it here too. Every mistake
that is listed can be planted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import ppap_plugin_adm
import ppap_plugin_glide
from ppap_plugin_adm import blocks, classifier, trunk, unet
from ppap_plugin_glide import unet as text_unet

TINY = Path(__file__).parent / "tiny"
CONTROLS = {"none (reload)", "float32 noise (oneDNN off)"}
SENSITIVITY: dict[str, dict[str, float]] = {
    name: {mistake: moved for mistake, moved in row.items() if mistake not in CONTROLS}
    for name, row in json.loads((TINY / "mutation_sensitivity.json").read_text())["results"].items()
}

original_embedding = blocks.timestep_embedding
original_split = blocks.split_heads
original_interpolate = F.interpolate
original_gelu = F.gelu
original_replace_padding = text_unet.replace_padding


def sine_first(timesteps: Tensor, dim: int) -> Tensor:
    cosine, sine = original_embedding(timesteps, dim).chunk(2, dim=-1)
    return torch.cat([sine, cosine], dim=-1)


def frequencies_over_half_minus_one(timesteps: Tensor, dim: int) -> Tensor:
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
    angles = timesteps[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def resample_after_conv(h: Tensor, resample: nn.Module, conv: nn.Module) -> Tensor:
    moved: Tensor = resample(conv(h))
    return moved


def swapped_order(packed: Tensor, heads: int, parts: int, *, parts_first: bool) -> list[Tensor]:
    return original_split(packed, heads, parts, parts_first=not parts_first)


def new_order_without_text(
    packed: Tensor, heads: int, parts: int, *, parts_first: bool
) -> list[Tensor]:
    if parts == 2:
        return text_ignored(packed, heads, parts, parts_first=parts_first)
    return swapped_order(packed, heads, parts, parts_first=parts_first)


def text_ignored(packed: Tensor, heads: int, parts: int, *, parts_first: bool) -> list[Tensor]:
    tokens = original_split(packed, heads, parts, parts_first=parts_first)
    return [t[:, :, :0] for t in tokens] if parts == 2 else tokens


def small_eps(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def resize_low_res(**mistaken: Any) -> Callable[..., Tensor]:
    def interpolate(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs["mode"] == "bilinear":
            kwargs = {"mode": "bilinear"} | mistaken
        return original_interpolate(image, *args, **kwargs)

    return interpolate


MISTAKES: dict[str, list[tuple[Any, str, Any]]] = {
    "timestep sin/cos swapped": [(trunk, "timestep_embedding", sine_first)],
    "timestep freq exponent /(half-1)": [
        (trunk, "timestep_embedding", frequencies_over_half_minus_one)
    ],
    "resblock resample_after_conv": [(blocks, "resample_and_convolve", resample_after_conv)],
    "resblock swap_scale_shift": [
        (blocks, "modulate", lambda h, scale, shift: h * (1 + shift) + scale)
    ],
    "resblock no_one_plus": [(blocks, "modulate", lambda h, scale, shift: h * scale + shift)],
    "attention order swapped": [
        (blocks, "split_heads", swapped_order),
        (classifier, "split_heads", swapped_order),
    ],
    "GroupNorm eps 1e-6": [(m, "group_norm", small_eps) for m in (blocks, unet, classifier)],
    "low_res nearest": [(F, "interpolate", resize_low_res(mode="nearest"))],
    "low_res align": [(F, "interpolate", resize_low_res(align_corners=True))],
    "low_res bicubic": [(F, "interpolate", resize_low_res(mode="bicubic"))],
    "attention new order, text ignored": [(blocks, "split_heads", new_order_without_text)],
    "attention: encoder_kv ignored": [(blocks, "split_heads", text_ignored)],
    "xf_proj from first token": [(text_unet, "last_token", lambda tokens: tokens[:, 0])],
    "mask ignored (all True)": [
        (
            text_unet,
            "replace_padding",
            lambda h, mask, padding: original_replace_padding(h, torch.ones_like(mask), padding),
        )
    ],
    "tanh GELU": [(F, "gelu", lambda h: original_gelu(h, approximate="tanh"))],
    "inpaint image not multiplied by mask": [(text_unet, "masked", lambda image, mask: image)],
    "dropout active": [(nn.Dropout, "forward", lambda self, h: F.dropout(h, self.p))],
}
RANDOM = {"dropout active"}  # of which the numbers that were drawn are not known


def evaluate(case: str) -> Tensor:
    record = json.loads((TINY / f"{case}.json").read_text())
    tensors = load_file(TINY / f"{case}.safetensors")
    package = ppap_plugin_glide if case.startswith("glide_") else ppap_plugin_adm
    network = package.build(record["official_class"], record["config"]).eval()
    network.load_state_dict(
        {n.removeprefix("param."): t.float() for n, t in tensors.items() if n.startswith("param.")}
    )
    with torch.no_grad():
        output: Tensor = network(
            **{n.removeprefix("input."): t for n, t in tensors.items() if n.startswith("input.")}
        )
    return output


@pytest.mark.parametrize("mistake", sorted({m for row in SENSITIVITY.values() for m in row}))
def test_a_mistake_moves_the_output_as_far_as_it_moves_the_published_code(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target, name, mutated in MISTAKES[mistake]:
        monkeypatch.setattr(target, name, mutated)
    noticed = []
    for case, row in SENSITIVITY.items():
        if mistake not in row:
            continue
        expected = load_file(TINY / f"{case}.safetensors")["output"]
        output = evaluate(case)
        moved = ((output - expected).norm() / expected.norm()).item()
        exact = {"rel": 0.2} if mistake in RANDOM else {"rel": 1e-3, "abs": 2e-6}
        assert moved == pytest.approx(row[mistake], **exact), case
        tolerance = json.loads((TINY / f"{case}.json").read_text())["tolerance"]["value"]
        noticed.append(moved > tolerance)
    assert any(noticed)
