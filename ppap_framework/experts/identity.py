"""Identity of a network: the hash of its weights, and what it is fed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.experts._record import as_tuple, counts, numbers
from ppap_framework.experts.set import has_experts


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the values of a state dict, 64 hexadecimal digits.

    It covers names in sorted order, each with its shape and its values as little-endian float64 (if
    they are that), float32 (any other floating point), or int64. So the same values give the same
    digest in any file, in any order, and in 16 or 32 bits.
    """
    digest = hashlib.sha256(b"ppap weights 1\n")
    for name in sorted(state):
        values = _canonical(state[name])
        entry = [name, str(values.dtype).removeprefix("torch."), list(values.shape)]
        digest.update(json.dumps(entry).encode() + b"\n")
        little = values.numpy()
        digest.update(little.astype(little.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def guide_sha256(model: GuidanceModel) -> str:
    """The `weights_sha256` of a guide's network.

    Raises:
        ValueError: If experts are attached, which may rename and change the weights.
    """
    if has_experts(model.network):
        raise ValueError("ask for the identity of a network before experts are attached")
    return weights_sha256(model.network.state_dict())


def backend_sha256(backend: DiffusionBackend) -> str:
    """The `weights_sha256` of the networks of all stages, as "stage.name"."""
    state = {
        f"{stage.name}.{name}": tensor
        for stage in backend.stages
        for name, tensor in stage.network.state_dict().items()
    }
    return weights_sha256(state)


def _canonical(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return tensor.to(torch.int64).contiguous()
    return tensor.to(tensor.dtype if tensor.dtype == torch.float64 else torch.float32).contiguous()


_TOLERANCE = 0.02
"""Tolerance of the value of a channel: above the rounding of bfloat16, and below the differences of
usual normalizations."""


@attrs.frozen
class InputConvention:
    """What reaches a guide's network, as `measure` finds it.

    Attributes:
        shape: (C, h, w), the shape of one input of the network.
        black: Mean of each of its C channels for an image of -1.
        white: Mean of each of its C channels for an image of 1.
    """

    shape: tuple[int, ...] = attrs.field(converter=as_tuple, validator=counts)
    black: tuple[float, ...] = attrs.field(converter=as_tuple, validator=numbers)
    white: tuple[float, ...] = attrs.field(converter=as_tuple, validator=numbers)

    @classmethod
    def measure(cls, model: GuidanceModel, resolution: tuple[int, ...]) -> InputConvention | None:
        """Feed a black and a white image of a resolution (h, w) to a guide, whose network itself
        does not run. None if the guide does not call its network as a whole.
        """
        parameter = next(model.parameters(), torch.empty(0))
        images = torch.tensor([-1.0, 1.0], device=parameter.device)[:, None, None, None]

        def watch(network: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _ReachedError(next((x for x in (*given, *named.values()) if _is_batch(x)), None))

        hook = model.network.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            with torch.no_grad():
                model(images.expand(2, 3, *resolution))
        except _ReachedError as reached:
            (seen,) = reached.args
        else:
            return None
        finally:
            hook.remove()
        if seen is None:
            return None
        means = seen.float().flatten(2).mean(2) if seen.ndim > 2 else seen.float()
        # Rounded, so that equal conventions read alike; far below the tolerance.
        black, white = ([round(value, 4) for value in row] for row in means.tolist())
        return cls(tuple(seen.shape[1:]), black, white)

    def matches(self, other: InputConvention) -> bool:
        """Whether a network that was trained with one convention may be fed with the other."""
        pairs = zip(self.black + self.white, other.black + other.white, strict=False)
        return self.shape == other.shape and all(abs(a - b) <= _TOLERANCE for a, b in pairs)


class _ReachedError(Exception):
    """Raised in the place of a network that need not run, with its input."""


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and len(value) == 2
