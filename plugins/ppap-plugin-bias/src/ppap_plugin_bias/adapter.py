"""Experts with parameters and running statistics of their own: some of them, or all.

`bias` takes every parameter of at most one dimension: the biases of all layers, the scales and
shifts of norms of any make, layer scales. And the running statistics of batch norms, which the
expert's own noisy images are normalised with. Layers without a bias get none.

`full` takes every parameter, and the same statistics: each expert is the whole network, fine-tuned.
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
    """Any tensor of one shape to the one held here.

    Args:
        start: The values to start from.

    Attributes:
        value: In float32, or float64 where `start` is that.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(start.dtype, torch.float32)
        self.value = nn.Parameter(start.to(dtype, copy=True))

    def forward(self, replaced: Tensor) -> Tensor:
        """The value, in the dtype of what it replaces."""
        return self.value.to(replaced.dtype)


def _adaptation(dimensions: float, wanted: str, network: nn.Module) -> Adaptation:
    """Parameters of at most so many dimensions, and running statistics."""
    parameters, statistics = [], []
    for prefix, module in network.named_modules():
        if isinstance(module, ParametrizationList):  # what other tensors are computed from
            continue
        prefix = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            # Of one byte are quantised ones, which cannot be moved by a little.
            changeable = parameter.is_floating_point() and parameter.itemsize > 1
            if parameter.ndim <= dimensions and changeable:
                parameters.append(prefix + name)
        statistics += [
            prefix + name for name, _ in module.named_buffers(recurse=False) if name in _STATISTICS
        ]
    if not parameters and not statistics:
        raise UsageError(
            f"{type(network).__name__} has no {wanted} or running statistics",
            hint="use another adapter",
        )
    return Adaptation(parametrizations=dict.fromkeys(parameters, Replacement), buffers=statistics)
