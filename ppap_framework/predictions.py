"""Predictions: tensors, or tuples, lists and mappings of tensors and None, else `PluginError`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppap_framework.errors import PluginError

__all__ = ["each_tensor", "joined", "squared_difference", "tensors_of", "widened"]


def each_tensor(change: Callable[[Tensor], Tensor], prediction: Any) -> Any:
    """A prediction with each of its tensors changed."""
    return _merged([prediction], lambda tensors: change(tensors[0]))


def tensors_of(prediction: Any) -> list[Tensor]:
    """The tensors of a prediction, in order."""
    found: list[Tensor] = []
    each_tensor(lambda tensor: found.append(tensor) or tensor, prediction)  # type: ignore[func-returns-value]
    return found


def joined(parts: Sequence[Any]) -> Any:
    """Concatenate the predictions of several batches; B is the first dimension of each tensor."""
    return _merged(parts, lambda tensors: torch.cat(list(tensors)))


def widened(prediction: Any) -> Any:
    """A prediction with its floating tensors in at least float32, so that losses are accurate."""

    def wide(tensor: Tensor) -> Tensor:
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return each_tensor(wide, prediction)


def squared_difference(one: Any, other: Any) -> Tensor:
    """Mean squared difference over all floating tensors of two predictions of one form: (B,)."""
    differences: list[Tensor] = []

    def compare(pair: Sequence[Tensor]) -> Tensor:
        a, b = pair
        if a.shape != b.shape:
            raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)}")
        if a.is_floating_point():
            differences.append((a - b).square().reshape(len(a), -1))
        return a

    try:
        _merged([one, other], compare)
        return torch.cat(differences, dim=1).mean(dim=1)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        fault = f"two predictions cannot be compared number by number: {error}"
        raise PluginError(fault, hint="write a loss that implements `transfer`") from error


def _merged(parts: Sequence[Any], merge: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """Merge several predictions of the same form, tensor by tensor."""
    first = parts[0]
    if isinstance(first, Tensor):
        return merge(parts)
    if first is None:
        return None
    if isinstance(first, Mapping):
        return type(first)({key: _merged([p[key] for p in parts], merge) for key in first})  # type: ignore[call-arg]  # mappings are made from dicts
    if isinstance(first, tuple | list):
        merged = [_merged(column, merge) for column in zip(*parts, strict=True)]
        named = isinstance(first, tuple) and type(first) is not tuple
        return type(first)(*merged) if named else type(first)(merged)
    hint = "a guide's prediction is a tensor, or tuples, lists and mappings of tensors"
    raise PluginError(f"a prediction has a {type(first).__name__} in it", hint=hint)
