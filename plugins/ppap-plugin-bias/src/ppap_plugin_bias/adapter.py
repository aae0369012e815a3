"""Experts with their own copies of some or all parameters and running statistics.

`bias` adapts every parameter of at most one dimension: biases, scales and shifts of norms, layer
scales. It also adapts the running statistics of batch norms, which normalise the expert's noisy
images. Layers without a bias get none.

`full` adapts every parameter and the same statistics: each expert is a fine-tuned network.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ppap_framework.author import Adaptation, ExpertAdapter, ParametrizationAdapter, UsageError

__all__ = ["Replacement", "make_bias", "make_full"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def make_bias(options: None = None) -> ExpertAdapter:
    """The adapter `bias`, which has no options."""
    return ParametrizationAdapter(partial(_adaptation, 1, "biases, norms"))


def make_full(options: None = None) -> ExpertAdapter:
    """The adapter `full`, which has no options. N experts are N times the network."""
    return ParametrizationAdapter(partial(_adaptation, math.inf, "parameters to train"))


class Replacement(nn.Module):
    """Replaces a tensor with the one held here.

    Args:
        start: Initial values.

    Attributes:
        value: The tensor, in float32, or float64 if `start` is.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(start.dtype, torch.float32)
        self.value = nn.Parameter(start.to(dtype, copy=True))

    def forward(self, replaced: Tensor) -> Tensor:
        """The value, in the dtype of the replaced tensor."""
        return self.value.to(replaced.dtype)


def _adaptation(dimensions: float, wanted: str, network: nn.Module) -> Adaptation:
    """Adapt parameters of at most `dimensions` dimensions, and running statistics."""
    parameters, statistics = [], []
    for prefix, module in network.named_modules():
        if isinstance(module, ParametrizationList):  # its tensors parametrize others
            continue
        prefix = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            # Types of one byte are quantised and cannot be changed in small steps.
            changeable = parameter.is_floating_point() and parameter.itemsize > 1
            if parameter.ndim <= dimensions and changeable:
                parameters.append(prefix + name)
        statistics += [
            prefix + name for name, _ in module.named_buffers(recurse=False) if name in _STATISTICS
        ]
    if not parameters and not statistics:
        hint = "leave this adapter out, or use `full`"
        if next(network.parameters(), None) is None:
            hint = "give it a layer that experts can change"
        raise UsageError(
            f"{type(network).__name__} has no {wanted} or running statistics",
            hint=hint,
        )
    return Adaptation(parametrizations=dict.fromkeys(parameters, Replacement), buffers=statistics)
