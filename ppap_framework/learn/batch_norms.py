"""Batch norms whose running statistics differ between experts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch.nn.modules.batchnorm import _BatchNorm

from ppap_framework.experts import ExpertSet


def own_batch_norms(experts: ExpertSet) -> list[_BatchNorm]:
    """The batch norms whose running statistics every expert holds."""
    held = {key.partition("/")[2] for key in experts.state_dict()}
    return [
        module
        for name, module in experts.model.network.named_modules()
        if isinstance(module, _BatchNorm) and f"0.{name + '.' if name else ''}running_mean" in held
    ]


@contextlib.contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """A context in which running statistics are reset and become plain averages over batches."""
    momenta = [module.momentum for module in norms]
    try:
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
