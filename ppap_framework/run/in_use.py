"""Networks while they are used, in which precision, and what memory that takes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap_framework.run.settings import Precision

__all__ = ["Placement", "frozen", "peak_memory", "products_in"]

_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def frozen(
    networks: Sequence[nn.Module], device: torch.device, *, move: bool = True
) -> Iterator[None]:
    """A context in which networks are on a device, in evaluation mode, with parameters that ask for
    no gradient, and give the same bytes every time; with `move=False` they stay where they are.

    Modes and parameters are at the end as they were found; the networks stay on the device.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    kernels: Any = contextlib.nullcontext()
    if device.type == "cuda":  # the same kernels every time, for the same bytes
        kernels = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    try:
        for network in networks:
            (network.to(device) if move else network).eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with kernels:
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


@final
class Placement:
    """Which networks are on the device: whatever was ever needed, or with `offload` what is needed
    now alone, and the rest on the CPU.
    """

    def __init__(self, device: torch.device, *, offload: bool) -> None:
        self._device = device
        self._offload = offload
        self._there: list[nn.Module] = []

    def need(self, *networks: nn.Module) -> None:
        """Have these on the device."""
        if self._offload:
            for network in self._there:
                if network not in networks:
                    network.to("cpu")
            self._there = []
        for network in networks:
            network.to(self._device)
        self._there += networks

    @contextlib.contextmanager
    def emptied(self) -> Iterator[None]:
        """A context at whose end, with `offload`, nothing is on the device."""
        try:
            yield
        finally:
            self.need()


@contextlib.contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context in which matrix products and convolutions are computed in that precision."""
    half = precision == "bfloat16"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=half))
        if half and device.type == "cpu":
            # Fused attention differentiates bfloat16 so slowly on CPUs that a small SegFormer's
            # gradients take twice as long with it as with two plain products.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def peak_memory(device: torch.device) -> int | None:
    """The most memory that was taken, in bytes: of the process, or on its device where that is a
    GPU; None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage would do on other systems; on Linux its peak survives exec, so that a process begins
    # with that of the one that started it.
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    own = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return own[0] if own else _peak_by_rusage()


def _peak_by_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such thing
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
