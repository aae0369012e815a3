"""How networks are used: device, precision, frozen weights, isolation from torch's global state."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap_framework.errors import UsageError, one_line

_STATUS = Path("/proc/self/status")
Precision: TypeAlias = Literal["float32", "bfloat16"]


@attrs.frozen
class Progress:
    """State of a long computation: an activity such as "drawing"; the steps done, those of earlier
    calls included, of at most a total; and a few words, such as the loss.
    """

    task: str
    done: int
    total: int
    detail: str = ""


Watch: TypeAlias = Callable[[Progress], None]
"""Called with the state of a long computation as it goes on."""


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """A context or decorator that keeps torch's global settings from changing images: the default
    dtype is float32, the default device the CPU, and inference mode off.
    """
    with torch.inference_mode(False), torch.device("cpu"), contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield


def generator(*key: object) -> torch.Generator:
    """A CPU generator, seeded by a hash of the key's words joined by "/"."""
    seed = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(seed, "big"))


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name, else UsageError; "auto" is a GPU if there is one."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here = [*(kind for kind, available in kinds.items() if available), "cpu"]
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # `meta` exists and computes nothing
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        told = str(name).startswith("cuda")  # for others torch's message is unhelpful
        reason = one_line(error) if told else "it is not here, or computes nothing"
        hint = f"use auto or {' or '.join(here)}"
        raise UsageError(f"device {str(name)!r} cannot be used: {reason}", hint=hint) from error
    return device


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """A context in which networks are in evaluation mode; every module's mode is restored."""
    with contextlib.ExitStack() as stack:
        for module in nn.ModuleList(networks).modules():
            stack.callback(setattr, module, "training", module.training)
        nn.ModuleList(networks).eval()
        yield


@contextlib.contextmanager
def frozen(
    networks: Sequence[nn.Module], device: torch.device, *, move: bool = True
) -> Iterator[None]:
    """A context in which networks are on a device, in evaluation mode, deterministic, and without
    parameters that require gradients. Modes and gradient flags are restored; networks stay on the
    device. `move=False` leaves them where they are.
    """
    every = nn.ModuleList(networks)
    # The flag of inference tensors is read-only.
    trained = [p for p in every.parameters() if p.requires_grad and not p.is_inference()]
    kernels: Any = contextlib.nullcontext()
    if device.type == "cuda":
        kernels = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    if move:
        for network in networks:
            network.to(device)
    with evaluating(every), kernels, contextlib.ExitStack() as stack:
        for parameter in trained:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        yield


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """A context that sets the precision of matrix products and convolutions."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def attending(device: torch.device) -> AbstractContextManager[object]:
    """A context without fused attention where its backward pass is slow, in bfloat16 on CPUs: a
    small SegFormer's gradients take twice as long with it. Without gradients it is the faster one.
    """
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return sdpa_kernel(SDPBackend.MATH) if slow else contextlib.nullcontext()


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes, of the process or of a GPU; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # On Linux getrusage's peak survives exec, so a process begins with that of its parent.
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.M):
            return int(found[1]) * 1024
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None
