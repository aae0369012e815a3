r"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    W' = W + alpha / r * reshape(B A, W)

For W of shape (out, in), or (out, in / groups, kh, kw), seen as a matrix with one row for each
output:

    plain     A (r, in / groups * kh * kw)   B (out, r)
    reshaped  A (r k, in / groups * kw)      B (out * kh, r k)    k = min(kh, kw)

The second is the parametrization of the released PPAP experts: a matrix of another shape, reshaped
to that of W in row-major order. Its rank is r k as that matrix and up to r k^2 as a change of W. It
equals the first if W has no kernel. A starts as Kaiming-uniform values with a = sqrt(5), B as 0.
"""

from __future__ import annotations

import difflib
import logging
import math
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn

from ppap_framework.author import (
    Adaptation,
    ExpertAdapter,
    Parametrization,
    ParametrizationAdapter,
    UsageError,
)
from ppap_plugin_lora.options import LoraOptions

__all__ = ["LowRank", "make_lora"]

_log = logging.getLogger(__name__)
_NOTED = 0.1  # share of the parameters in layers of other kinds from which on they are named

_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv2d: ("weight",),
    nn.MultiheadAttention: (
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
    ),
}
"""Adapted parameters by layer type. The output projection of attention is a separate Linear."""


def make_lora(options: LoraOptions | None = None) -> ExpertAdapter:
    """The adapter `lora`."""
    return ParametrizationAdapter(partial(_adaptation, options or LoraOptions()))


class LowRank(Parametrization):
    """W to W + alpha / r * reshape(B A, W).

    The sum is computed in float32, or in float64 if W is float64, regardless of autocast, and
    rounded once to the dtype of W.

    Args:
        weight: W, (out, in) or (out, in / groups, kh, kw).
        options: Rank, alpha and variant.
        generator: Random generator for A, on the CPU.

    Attributes:
        lora_A: (r, columns), or (r k, columns) for the reshaped variant.
        lora_B: (rows, r), or (rows, r k) for the reshaped variant.
        scale: alpha / r.
    """

    def __init__(self, weight: Tensor, options: LoraOptions, generator: torch.Generator) -> None:
        super().__init__()
        rows, inner, columns = _factors(weight, options)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        a = nn.init.kaiming_uniform_(torch.empty(inner, columns), math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(a.to(weight.device, dtype))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, inner, dtype=dtype))
        self.scale = options.alpha / options.rank

    def forward(self, weight: Tensor) -> Tensor:
        """W' for W, in the memory format of W."""
        given, a, last = self._ordered(weight.to(self.lora_A.dtype))
        with torch.autocast(weight.device.type, enabled=False):
            matrix = given.reshape(len(self.lora_B), -1)
            matrix = torch.addmm(matrix, self.lora_B, a, alpha=self.scale)
        changed = matrix.view(given.shape)
        return (changed.permute(0, 3, 1, 2) if last else changed).to(weight.dtype)

    def write(self, weight: Tensor, out: Tensor) -> None:
        """See `Parametrization.write`."""
        given, a, last = self._ordered(weight)
        into = out.permute(0, 2, 3, 1) if last else out
        if not (weight.dtype == out.dtype == a.dtype and into.is_contiguous()):
            super().write(weight, out)
            return
        rows = len(self.lora_B)
        matrix, into = given.reshape(rows, -1), into.view(rows, -1)
        with torch.autocast(weight.device.type, enabled=False):
            torch.addmm(matrix, self.lora_B, a, alpha=self.scale, out=into)

    def _ordered(self, weight: Tensor) -> tuple[Tensor, Tensor, bool]:
        """W and A, with the channels of kernels last if those of W lie so, and whether they do.
        Ordering A saves copies of W, which is larger.
        """
        a: Tensor = self.lora_A
        plain = a.shape[1] == weight[0].numel() and not weight.is_contiguous()
        if not (plain and weight.is_contiguous(memory_format=torch.channels_last)):
            return weight, a, False
        a = a.view(-1, *weight.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return weight.permute(0, 2, 3, 1), a, True


def _factors(weight: Tensor, options: LoraOptions) -> tuple[int, int, int]:
    """Rows of B, columns of B and rows of A, columns of A."""
    if options.variant == "reshaped" and weight.ndim == 4:
        out, into, height, width = weight.shape
        return out * height, options.rank * min(height, width), into * width
    return weight.shape[0], options.rank, weight.shape[1:].numel()


def _adaptation(options: LoraOptions, network: nn.Module) -> Adaptation:
    generator = torch.Generator().manual_seed(options.seed)
    weights = _named(network, options) if options.targets else _worthwhile(network, options)
    make = partial(LowRank, options=options, generator=generator)
    return Adaptation(parametrizations=dict.fromkeys(weights, make))


def _worthwhile(network: nn.Module, options: LoraOptions) -> list[str]:
    """Weights with at least twice as many parameters as their low-rank change."""
    found = []
    adapted = _weights(network)
    fitting = 0  # the highest rank that some weight is large enough for
    for layer, weights in adapted.items():
        for name, weight in weights.items():
            rows, inner, columns = _factors(weight, options)
            each = inner // options.rank * (rows + columns)  # parameters of a change of rank 1
            fitting = max(fitting, weight.numel() // (2 * each))
            if 2 * inner * (rows + columns) <= weight.numel():
                found.append(f"{layer}.{name}" if layer else name)
    others = {
        layer: module
        for layer, module in network.named_modules()
        if layer not in adapted and any(p.ndim > 1 for p in module.parameters(recurse=False))
    }
    kinds = ", ".join(sorted({type(module).__name__ for module in others.values()}))
    size = sum(p.numel() for module in others.values() for p in module.parameters(recurse=False))
    if not found:
        change = f"; it does not change {kinds}" if kinds else ""
        other = "use the adapter `full`"
        if next(network.parameters(), None) is None:
            other = "it has no parameters: give it a layer that experts can change"
        elif fitting and not kinds:
            other = f"use a rank of at most {fitting}, or name targets"
        raise UsageError(
            f"{type(network).__name__} has no Linear, Conv2d or MultiheadAttention layer that is "
            f"large enough for LoRA of rank {options.rank}{change}",
            hint=other,
        )
    if size > _NOTED * sum(parameter.numel() for parameter in network.parameters()):
        _log.warning("LoRA changes no %s, which hold %d of the parameters", kinds, size)
    return found


def _named(network: nn.Module, options: LoraOptions) -> list[str]:
    """Weights of all layers that match the patterns."""
    layers = _weights(network)
    wanted = set()
    for pattern in options.targets:
        matching = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not any(layers[layer] for layer in matching):
            raise _no_target(pattern, matching, layers)
        wanted.update(matching)
    return [
        f"{layer}.{name}" if layer else name
        for layer, weights in layers.items()
        if layer in wanted
        for name in weights
    ]


def _weights(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Parameters that can be adapted, by layer and name.

    A layer has none if its weight is computed from others (weight norm) or is quantised.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for layer, module in network.named_modules():
        for kind, names in _LAYERS.items():
            if isinstance(module, kind):
                held = {name: module._parameters.get(name) for name in names}
                found[layer] = {
                    name: weight
                    for name, weight in held.items()
                    if weight is not None and weight.is_floating_point() and weight.itemsize > 1
                }
    return found


def _no_target(
    pattern: str, matching: list[str], layers: dict[str, dict[str, Tensor]]
) -> UsageError:
    if matching:
        return UsageError(
            f"the weight of {matching[0]!r}, which the target {pattern!r} names, cannot be changed:"
            " it is computed from other parameters, or quantised",
            hint="leave that target out",
        )
    near = difflib.get_close_matches(pattern, layers, n=3) or list(layers)[:3]
    return UsageError(
        f"the target {pattern!r} names no linear, convolution or attention layer",
        hint=f"there are {', '.join(near)}, ..." if near else "the network has none",
    )
