"""Identity of a network: the hash of its weights, and its input convention."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from attrs.validators import optional
from torch import Tensor, nn

from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.errors import UsageError
from ppap_framework.experts._rules import counts, digest, numbers, text
from ppap_framework.experts.set import has_experts

_TOLERANCE = 0.02
"""Tolerance of channel values: above rounding in bfloat16, below differences of normalizations."""


def weights_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state dict, 64 hexadecimal digits; equal values in 16 and 32 bits are equal.

    It covers sorted names, each with its shape and its values as little-endian float64 (if they are
    that), float32 (any other floating point), or int64. What is no tensor is searched for tensors.
    """
    found = hashlib.sha256(b"ppap weights 1\n")
    for name, tensor in sorted(_tensors(state), key=lambda item: item[0]):
        values = tensor.detach().cpu()
        if values.layout != torch.strided or values.is_quantized:
            values = values.dequantize() if values.is_quantized else values.to_dense()
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        if values.dtype != torch.float64:
            values = values.to(torch.float32 if values.is_floating_point() else torch.int64)
        entry = [name, str(values.dtype).removeprefix("torch."), list(values.shape)]
        found.update(json.dumps(entry).encode() + b"\n")
        little = values.contiguous().numpy()
        found.update(little.astype(little.dtype.newbyteorder("<"), copy=False).data)
    return found.hexdigest()


def _tensors(part: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        yield name, part
    elif isinstance(part, Mapping | tuple | list):
        for key, value in part.items() if isinstance(part, Mapping) else enumerate(part):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def guide_sha256(model: GuidanceModel) -> str:
    """The `weights_sha256` of a guide's network; ValueError with experts, UsageError if lazy."""
    if has_experts(model.network):
        raise ValueError("ask for the identity of a network before experts are attached")
    state = model.network.state_dict()
    if any(map(nn.parameter.is_lazy, state.values())):
        fault = f"{type(model.network).__name__} has layers whose size is not known yet"
        raise UsageError(fault, hint="show it an image first")
    if any(tensor.is_meta for _, tensor in _tensors(state)):
        fault = f"{type(model.network).__name__} has no weights, only their shapes"
        raise UsageError(fault, hint="load them, instead of leaving it on the meta device")
    return weights_sha256(state)


def backend_sha256(backend: DiffusionBackend) -> str:
    """The `weights_sha256` of the networks of all stages, as "stage.name"."""
    state = {
        f"{stage.name}.{name}": tensor
        for stage in backend.stages
        for name, tensor in stage.network.state_dict().items()
    }
    return weights_sha256(state)


@attrs.frozen(kw_only=True)
class Identity:
    """A network's backend or guider by name, or the class of a user's own object; the name of its
    weights, if any; and `guide_sha256` or `backend_sha256`, which alone is compared, if known.
    """

    component: str = attrs.field(validator=text)
    checkpoint: str | None = attrs.field(validator=optional(text))
    sha256: str | None = attrs.field(validator=optional(digest))

    def __str__(self) -> str:
        of = f" {self.checkpoint!r}" if self.checkpoint else ""
        return f"{self.component}{of} ({self.sha256[:12] if self.sha256 else 'unknown weights'})"


@attrs.frozen
class InputConvention:
    """The input of a guide's network for a black and a white image.

    Attributes:
        shape: (C, h, w), shape of one input of the network.
        black: Means of its C channels for an image of -1.
        white: Means of its C channels for an image of 1.
    """

    shape: tuple[int, ...] = attrs.field(converter=tuple[int, ...], validator=counts)
    black: tuple[float, ...] = attrs.field(converter=tuple[float, ...], validator=numbers)
    white: tuple[float, ...] = attrs.field(converter=tuple[float, ...], validator=numbers)

    @classmethod
    def measure(cls, model: GuidanceModel, resolution: tuple[int, ...]) -> InputConvention | None:
        """Measure at (h, w), without running the network; None if it is not called as a whole."""
        parameter = next(model.parameters(), torch.empty(0))
        images = torch.tensor([-1.0, 1.0], device=parameter.device)[:, None, None, None]

        def watch(network: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = (x for x in (*given, *named.values()) if isinstance(x, Tensor))
            raise _ReachedError(next((x for x in tensors if x.ndim >= 2 and len(x) == 2), None))

        hook = model.network.register_forward_pre_hook(watch, with_kwargs=True)
        seen = None
        try:
            with torch.no_grad():
                model(images.expand(2, 3, *resolution))
        except _ReachedError as reached:
            (seen,) = reached.args
        finally:
            hook.remove()
        if seen is None:
            return None
        means = seen.float().flatten(2).mean(2) if seen.ndim > 2 else seen.float()
        # Rounded far below the tolerance, so that equal conventions look equal.
        black, white = ([round(value, 4) for value in row] for row in means.tolist())
        return cls(tuple(seen.shape[1:]), black, white)

    def matches(self, other: InputConvention) -> bool:
        """Whether both conventions agree within the tolerance."""
        pairs = zip(self.black + self.white, other.black + other.white, strict=False)
        return self.shape == other.shape and all(abs(a - b) <= _TOLERANCE for a, b in pairs)


class _ReachedError(Exception):
    """Raised instead of running a network, with its input."""
