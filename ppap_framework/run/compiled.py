"""Compilation of a run's networks by torch."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import nn

from ppap_framework.errors import PpapError, first_line
from ppap_framework.run.plan import Plan

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def compiled(run: Plan) -> Iterator[Callable[[], None]]:
    """A context in which each network's `forward` is compiled at its first call.

    Weights are inputs of the compiled code, not constants, so merged experts take effect. Call the
    yielded function after a step: it warns if the first stage's network was not called as a module
    and so not compiled. Other networks are checked on exit. Raises a PpapError if a network cannot
    be compiled, for instance without a compiler.
    """
    from torch._dynamo.exc import TorchDynamoException  # it takes seconds to import

    named = {stage.network: f"stage {stage.name!r}" for stage in run.stages}
    named |= {guide.model.network: f"guide {guide.name!r}" for guide in run.guides}
    watched = {network: _Compiled(network) for network in named}

    def check(*networks: nn.Module) -> None:
        for network in networks:
            if not watched[network].called and (name := named.pop(network, None)):
                _log.warning("%s is not compiled: its network is used otherwise than called", name)

    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        # Tracing asks every tensor for its gradient, those in the middle of a graph as well.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        for network, forward in watched.items():
            if "forward" in vars(network):
                stack.callback(setattr, network, "forward", network.forward)
            else:
                stack.callback(delattr, network, "forward")
            network.forward = forward
        try:
            yield lambda: check(run.stage.network)
        except TorchDynamoException as error:
            raise PpapError(
                f"the networks cannot be compiled: {first_line(error)}",
                hint="torch.compile wants a C++ compiler such as g++; or leave out --compile",
            ) from error
    check(*watched)


@final
class _Compiled:
    """A compiled `forward` that records whether it was called."""

    def __init__(self, network: nn.Module) -> None:
        self._forward = torch.compile(network.forward)
        self.called = False

    def __call__(self, *given: Any, **more: Any) -> Any:
        self.called = True
        return self._forward(*given, **more)
