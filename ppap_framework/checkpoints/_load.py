"""From a checkpoint into a network, without a second copy of its weights."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ppap_framework.checkpoints._checkpoint import Checkpoint
from ppap_framework.checkpoints._tensor_file import container
from ppap_framework.errors import AssetError

_SMALL = 2**28  # bytes
_madvise = ctypes.CDLL(None).madvise if sys.platform.startswith("linux") else None


def load_into(module: nn.Module, checkpoint: Checkpoint, *, channels_last: bool = False) -> None:
    """Load the weights of a checkpoint, with equal names and shapes, into a network.

    Tensors of the network's own dtype and device stay in the mapped file, without a copy. Others
    are cast one by one, and the pages that were read for this are released at once. A network on
    the meta device moves to the CPU. Parameters become new objects: create optimizers afterwards.

    Args:
        module: The network.
        checkpoint: The weights.
        channels_last: Whether to lay out the weights of convolutions so, which makes them faster:
            those that are cast, and all if the weights take less than 256 MiB. Others stay mapped.

    Raises:
        AssetError: If the two differ; the message counts and names what is missing, unexpected, or
            of another shape.
    """
    state = checkpoint.state_dict()
    own = module.state_dict()
    if faults := misfits(state, own):
        fault = f"{checkpoint.name!r} does not fit the {len(own)} keys of {type(module).__name__}"
        hint = "it is of another architecture, or the architecture is stated wrongly"
        raise AssetError(f"{fault}: {faults}", hint=hint)
    small = sum(tensor.nbytes for tensor in state.values()) < _SMALL
    mapped = all(container(path) != "pickle" for path in checkpoint.files)
    fitted = {}
    for name in own:
        tensor = state.pop(name)
        fitted[name] = _like(tensor, own[name], channels_last, small)
        if mapped and fitted[name].data_ptr() != tensor.data_ptr():
            _release_pages(tensor)
    module.load_state_dict(fitted, assign=True)


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What differs in names, shapes and kinds of number, as `counted`; empty if nothing does."""
    reshaped = [
        f"{_short(name)} {_kind(state[name])} instead of {_kind(own[name])}"
        for name in own
        if name in state and _kind(state[name]) != _kind(own[name])
    ]
    missing = [_short(name) for name in own if name not in state]
    unexpected = [_short(name) for name in state if name not in own]
    return counted({"missing": missing, "unexpected": unexpected, "of another shape": reshaped})


def counted(faults: Mapping[str, Sequence[str]]) -> str:
    """Faults in a line, such as "4 missing (a, b, c, ...); 1 unexpected (d)"."""
    return "; ".join(
        f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
        for what, items in faults.items()
        if items
    )


def _kind(tensor: Tensor) -> str:
    """Shape, and the dtype if a cast could change the values' meaning."""
    of = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{of}"


def _short(name: str) -> str:
    return repr(name) if len(name) <= 100 else f"{name[:99]!r}..."


def _like(tensor: Tensor, own: Tensor, channels_last: bool, small: bool) -> Tensor:
    """A tensor in the network's dtype, device and layout, with one copy or none."""
    device = torch.device("cpu") if own.device.type == "meta" else own.device
    stays = (tensor.dtype, tensor.device) == (own.dtype, device)
    layout = torch.contiguous_format
    if channels_last and tensor.ndim == 4 and (small or not stays):
        layout, stays = torch.channels_last, False  # 1 x 1 kernels too, whose strides do not tell
    if stays:
        return tensor
    copy = torch.empty_like(tensor, dtype=own.dtype, device=device, memory_format=layout)
    return copy.copy_(tensor)


def _release_pages(tensor: Tensor) -> None:
    """Release the pages of a mapped file that lie wholly within a tensor.

    Pages that were read count as the process's memory; they are read again if they are needed.
    """
    if _madvise is None or not tensor.is_contiguous():
        return
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
