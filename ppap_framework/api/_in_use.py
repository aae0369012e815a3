"""Networks while they are used, in which precision, and what memory that takes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap_framework.api._settings import Precision

__all__ = ["frozen", "peak_memory", "products_in"]

_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def frozen(networks: Sequence[nn.Module], device: torch.device | None) -> Iterator[None]:
    """A context in which networks are on a device (None: where they are), in evaluation mode, with
    parameters that ask for no gradient, and give the same bytes every time.

    Modes and parameters are at the end as they were found; the networks stay on the device.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    kernels: Any = contextlib.nullcontext()
    if device is not None and device.type == "cuda":
        # The same kernels every time, for the same bytes.
        kernels = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    try:
        for network in networks:
            (network if device is None else network.to(device)).eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with kernels:
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)


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
