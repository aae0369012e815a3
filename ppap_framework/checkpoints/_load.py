"""From a checkpoint into a network, without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppap_framework.checkpoints._checkpoint import Checkpoint
from ppap_framework.checkpoints._pages import MappedPages
from ppap_framework.errors import AssetError

__all__ = ["load_into", "misfits"]

_SMALL = 2**28  # bytes


def load_into(module: nn.Module, checkpoint: Checkpoint, *, channels_last: bool = False) -> None:
    """Give a network the weights of a checkpoint: every key must fit, in name and shape.

    Tensors of the network's own dtype and device are taken as they lie in the mapped file, without
    a copy; others are cast one by one, and what was read for a copy is let go of at once. A network
    on the meta device lands on the CPU. Its parameters become new objects, so optimisers come
    later.

    Args:
        module: Takes the weights.
        checkpoint: Has them.
        channels_last: Whether to lay out the weights of convolutions so, which makes them quicker:
            where they are cast anyway, and where all weights together take less than 256 MiB. A
            larger file stays mapped.

    Raises:
        AssetError: Where the two differ; the message counts and names what is missing,
            unexpected, or of another shape.
    """
    state = checkpoint.state_dict()
    own = module.state_dict()
    if faults := misfits(state, own):
        raise AssetError(
            f"{checkpoint.name!r} does not fit the {len(own)} keys of {type(module).__name__}: "
            + faults,
            hint="it is of another architecture, or the architecture is stated wrongly",
        )
    small = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) < _SMALL
    pages = MappedPages(part.path for part in checkpoint.parts or (checkpoint,))
    fitted = {}
    for name in own:
        tensor = state.pop(name)
        fitted[name] = _like(tensor, own[name], channels_last, small)
        if fitted[name].data_ptr() != tensor.data_ptr():
            pages.let_go(tensor)
    module.load_state_dict(fitted, assign=True)


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """In what tensors by name are not those that are wanted: counted, the first of each kind named;
    empty where they are.

    Args:
        state: As they are.
        own: Of the names, shapes and kinds of number that are wanted.
    """
    missing = [_short(name) for name in own if name not in state]
    unexpected = [_short(name) for name in state if name not in own]
    reshaped = [
        f"{_short(name)} {_kind(state[name])} instead of {_kind(own[name])}"
        for name in own
        if name in state and _kind(state[name]) != _kind(own[name])
    ]
    faults = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if items
    ]
    return "; ".join(faults)


def _kind(tensor: Tensor) -> str:
    """Shape, and the sort of number where a cast would lose what it means."""
    shape = str(tuple(tensor.shape))
    return (
        shape
        if tensor.is_floating_point()
        else f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"
    )


def _like(tensor: Tensor, own: Tensor, channels_last: bool, small: bool) -> Tensor:
    """A tensor as the network wants it, in a single copy or none."""
    device = torch.device("cpu") if own.device.type == "meta" else own.device
    stays = (tensor.dtype, tensor.device) == (own.dtype, device)
    layout = torch.contiguous_format
    if channels_last and tensor.ndim == 4 and (small or not stays):
        layout, stays = torch.channels_last, False  # 1 x 1 kernels lie so anyway, but do not say it
    if stays:
        return tensor
    copy = torch.empty_like(tensor, dtype=own.dtype, device=device, memory_format=layout)
    return copy.copy_(tensor)


def _short(name: str) -> str:
    return repr(name) if len(name) <= 100 else f"{name[:99]!r}..."
