"""Experts with biases, norms and running statistics of their own.

Every parameter of at most one dimension: the biases of all layers, the scales and shifts of norms
of any make, layer scales. And the running statistics of batch norms, which the expert's own noisy
images are normalised with. Layers without a bias get none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ppap_framework.adaptation import Adaptation, ParametrizationAdapter
from ppap_framework.components import ExpertAdapter
from ppap_framework.errors import UsageError

__all__ = ["Replacement", "make_bias"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def make_bias(options: None = None) -> ExpertAdapter:
    """The adapter `bias`, which has no options."""
    return ParametrizationAdapter(_adaptation)


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


def _adaptation(network: nn.Module) -> Adaptation:
    vectors, statistics = [], []
    for prefix, module in network.named_modules():
        if isinstance(module, ParametrizationList):  # what other tensors are computed from
            continue
        prefix = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim <= 1 and parameter.is_floating_point() and parameter.itemsize > 1:
                vectors.append(prefix + name)
        statistics += [
            prefix + name for name, _ in module.named_buffers(recurse=False) if name in _STATISTICS
        ]
    if not vectors and not statistics:
        raise UsageError(
            f"{type(network).__name__} has no biases, norms or running statistics",
            hint="use another adapter",
        )
    return Adaptation(parametrizations=dict.fromkeys(vectors, Replacement), buffers=statistics)
