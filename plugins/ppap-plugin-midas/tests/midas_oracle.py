"""MiDaS_small computed from its state dict with single operations, apart from the plugin's code."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]

STAGES = (  # folder of the stage in the file, its blocks, and the stride of the first
    ("layer1.3", 1, 1),
    ("layer1.4", 3, 2),
    ("layer2.0", 3, 2),
    ("layer3.0", 5, 2),
    ("layer3.1", 5, 1),
    ("layer4.0", 6, 2),
    ("layer4.1", 1, 1),
)


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Values with which activations neither vanish nor grow, and disparity is above 0."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        values = torch.rand(shape, generator=generator) if shape else torch.tensor(3)
        if len(shape) > 1:
            values = (2 * values - 1) * (3 / values[0].numel()) ** 0.5
        elif "running_mean" in name or name.endswith("bias"):
            values = 0.2 * values - 0.1
        elif shape:
            values = values + 0.5
        state[name] = values
    state["scratch.output_conv.4.bias"] += 1.0
    return state


def disparity(state: State, pixels: Tensor) -> Tensor:
    """(B, h, w) of normalized images (B, 3, h, w)."""
    x = _relu6(_norm(state, "layer1.1", _same(state, "layer1.0", pixels, 2)))
    maps = {}
    for stage, blocks, stride in STAGES:
        for index in range(blocks):
            x = _block(state, f"{stage}.{index}", x, 1 if index else stride)
        maps[stage[5]] = x
    path = None
    for level in "4321":
        found = _conv(state, f"layer{level}_rn", maps[level])
        name = f"refinenet{level}"
        path = found if path is None else path + _residual(state, f"{name}.resConfUnit1", found)
        path = _residual(state, f"{name}.resConfUnit2", path)
        side = [2 * extent for extent in path.shape[2:]]
        path = F.interpolate(path, side, mode="bilinear", align_corners=True)
        path = _conv(state, f"{name}.out_conv", path)
    x = _conv(state, "output_conv.0", path)
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = _conv(state, "output_conv.2", x).clamp_min(0)
    return _conv(state, "output_conv.4", x).clamp_min(0)[:, 0]


def _block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    before = x
    if f"pretrained.{name}.conv_pwl.weight" in state:  # inverted residual
        x = _relu6(_norm(state, f"{name}.bn1", _same(state, f"{name}.conv_pw", x)))
        x = _relu6(_norm(state, f"{name}.bn2", _same(state, f"{name}.conv_dw", x, stride)))
        x = _norm(state, f"{name}.bn3", _same(state, f"{name}.conv_pwl", x))
    else:  # depthwise separable
        x = _relu6(_norm(state, f"{name}.bn1", _same(state, f"{name}.conv_dw", x, stride)))
        x = _norm(state, f"{name}.bn2", _same(state, f"{name}.conv_pw", x))
    return x + before if x.shape == before.shape else x


def _same(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """TensorFlow's SAME: an odd pixel of padding goes to the right and the bottom."""
    weight = state[f"pretrained.{name}.weight"]
    kernel, groups = weight.shape[2], x.shape[1] // weight.shape[1]
    pads: list[int] = []
    for extent in (x.shape[3], x.shape[2]):
        total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias, mean, variance = (
        state[f"pretrained.{name}.{part}"][:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (variance + 1e-3).sqrt() * weight + bias


def _relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def _conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"scratch.{name}.weight"]
    bias = state.get(f"scratch.{name}.bias")
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


def _residual(state: State, name: str, x: Tensor) -> Tensor:
    return x + _conv(state, f"{name}.conv2", _conv(state, f"{name}.conv1", x.relu()).relu())
