"""Files of tensors: detecting their kind, reading them, also into a network, and writing them.

Files that `torch.save` wrote are pickles, which may ask for any function to be called. torch's
restricted unpickler (`weights_only`) builds tensors and plain containers, and refuses all else.
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import json
import mmap
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ppap_framework.errors import AssetError
from ppap_framework.files import replacing

if TYPE_CHECKING:
    from ppap_framework.checkpoints._checkpoint import Checkpoint

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_TIED = 4  # times the file's size; a weight that a network uses twice is saved under two names
_WRAPPINGS = ("state_dict", "model", "model_state_dict", "net")  # keys of training programs
_WRAPPERS = re.compile(r"((_orig_mod|module|model|net)\.)*")  # compiled and parallel networks
_SMALL = 2**28  # bytes; less is always laid out anew
_madvise = ctypes.CDLL(None).madvise if sys.platform.startswith("linux") else None
_AGAIN = "fetch or save it again"
_OTHERS = (  # how other files begin, what they are, and a hint
    (rb"\Z", "empty", _AGAIN),
    (rb"PK\x03\x04|\x80", "not safetensors but a pickle under a false name", "do not trust it"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file", "type `git lfs pull`"),
    (rb"\s*<", "a web page, not a checkpoint", "download the file itself"),
)


def read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Verify a file and read the strings that a safetensors file carries beside its tensors, and
    all tensors by name, on the CPU. If its kind can be mapped, these are read when they are used,
    and changes stay in memory. AssetError if it is missing, damaged, of another kind, or runs code.
    """
    try:
        kind = container(path)
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return metadata, load_file(path)
        if kind == "zip":
            _refuse_bomb(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged pickles cause warnings
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except AssetError:
        raise
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        fault = "cannot be read: its pickle is damaged or holds more than tensors"
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            fault = f"wants {wanted[1]} to be called when it is loaded; nothing was run"
        hint = "if you trust its origin, load it yourself and save its state dict as safetensors"
        raise AssetError(f"{str(path)!r} {fault}", hint=hint) from error
    except Exception as error:  # a damaged file can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        fault = f"{str(path)!r} is a truncated or damaged checkpoint: {reason}"
        raise AssetError(fault, hint=_AGAIN) from error
    return {}, _state_dict(path, loaded)


def container(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    """The kind of a file, by its first bytes or else its name. The first two kinds are mapped."""
    if path.is_dir():
        raise AssetError(f"{str(path)!r} is a folder, not a checkpoint", hint=_neighbors(path, ""))
    if not path.is_file():
        raise AssetError(f"there is no file {str(path)!r}", hint=_neighbors(path.parent, path.name))
    with path.open("rb") as file:
        first = file.read(64)
    named = path.suffix == ".safetensors"
    if first[8:9] == b"{":  # the header, after its length
        return "safetensors"
    if first.startswith((b"PK\x03\x04", b"\x80")) and not named:  # torch.save: new or old
        return "zip" if first.startswith(b"PK") else "pickle"
    for begin, what, hint in _OTHERS:
        if re.match(begin, first):
            raise AssetError(f"{str(path)!r} is {what}", hint=hint)
    if named:
        return "safetensors"  # damaged; the reader explains
    fault = f"{str(path)!r} is neither a safetensors file nor one that torch.save wrote"
    raise AssetError(fault, hint=f"a checkpoint ends in one of {', '.join(_SUFFIXES)}")


def _neighbors(folder: Path, name: str) -> str:
    try:
        files = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)
    except OSError:
        return f"there is no folder {str(folder)!r} either"
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.5) or files[:3]
    where = repr(str(folder))
    return f"in {where} there is {', '.join(close)}" if close else f"{where} holds no checkpoints"


def _refuse_bomb(path: Path) -> None:
    """Refuse a zip archive that is incomplete or a bomb, without unpacking it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        hint = "load it with torch.jit.load and save its state dict"
        raise AssetError(f"{str(path)!r} is a TorchScript program, not a checkpoint", hint=hint)
    # torch stores members uncompressed: an honest file is never larger inside than outside.
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        fault = f"is a compressed archive, {unpacked} bytes in {size}; torch writes none"
        hint = "unpack it if it contains a checkpoint; otherwise do not trust it"
        raise AssetError(f"{str(path)!r} {fault}", hint=hint)
    if "data.pkl" not in names:
        fault = f"{str(path)!r} is a zip archive that torch did not write"
        raise AssetError(fault, hint="unpack it if it contains a checkpoint")


def _state_dict(path: Path, loaded: object) -> dict[str, Tensor]:
    candidates, what = [loaded], type(loaded).__name__
    if isinstance(loaded, Mapping):
        candidates += [loaded[key] for key in _WRAPPINGS if key in loaded]
        keys = ", ".join(repr(key)[:40] for key in list(loaded)[:3])
        what = f"mapping of {keys or 'nothing'}"
    for state in candidates:
        if not isinstance(state, Mapping) or (not state and state is not loaded):
            continue
        if all(_is_plain(value) or _is_extra(name) for name, value in state.items()):
            tensors = {n: t.detach() for n, t in state.items() if isinstance(t, Tensor)}
            size, unpacked = path.stat().st_size, sum(t.nbytes for t in tensors.values())
            if unpacked > _TIED * size:
                fault = f"has {size} bytes, and its tensors would take {unpacked} bytes"
                hint = "they repeat the same bytes; save it again with contiguous tensors"
                raise AssetError(f"{str(path)!r} {fault}", hint=hint)
            found: dict[str, Any] = {str(n): tensors.get(n, extra) for n, extra in state.items()}
            return found
    hint = f"a checkpoint maps names to tensors, alone or under {' or '.join(_WRAPPINGS)}"
    raise AssetError(f"{str(path)!r} holds no state dict, but a {what}", hint=hint)


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _is_extra(name: object) -> bool:
    """Whether a key is for what `get_extra_state` of a module returned, which may be any object."""
    return str(name).rpartition(".")[2] == "_extra_state"


def wrapper(state: Iterable[str]) -> str:
    """The prefix of all names of a part of a compiled, parallel or other one, such as "module."."""
    found = _WRAPPERS.match(commonprefix([*state]))  # noqa: RUF071  # by characters
    return found[0] if found else ""


def load_into(module: nn.Module, checkpoint: Checkpoint, *, channels_last: bool = False) -> None:
    """Load the weights of a checkpoint, with equal names and shapes, into a network.

    Names are compared without the `wrapper` of either. Counters of batch normalization may be
    missing, as in files of old versions of torch, and whole numbers and masks may have another
    dtype that holds the same values. Extra state is given to its module as it is.

    Tensors of the network's own dtype and device stay in the mapped file, without a copy. Others
    are cast one by one, and the pages that were read for this are released at once. A network on
    the meta device moves to the CPU. Parameters become new objects: create optimizers afterwards.
    `channels_last` lays out the weights of convolutions so, which makes them faster: those that are
    cast, and all if the weights take less than 256 MiB. AssetError names what does not fit.
    """
    state, own = checkpoint.state_dict(), module.state_dict()
    prefix = wrapper(own)
    own = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    extra = {prefix + name: state.pop(name) for name in own if _is_extra(name) and name in state}
    own = {name: tensor for name, tensor in own.items() if prefix + name not in extra}
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
        if name in state:
            state[name] = _as_kind(state[name], tensor)
    if faults := misfits(state, own):
        fault = f"{checkpoint.name!r} does not fit the {len(own)} keys of {type(module).__name__}"
        hint = "it is of another architecture, or the architecture is stated wrongly"
        raise AssetError(f"{fault}: {faults}", hint=hint)
    small = sum(tensor.nbytes for tensor in state.values()) < _SMALL
    mapped = all(container(path) != "pickle" for path in checkpoint.files)
    fitted = {}
    for name in own:
        tensor = state.pop(name)
        fitted[prefix + name] = like = _like(tensor, own[name], channels_last, small)
        if mapped and like.data_ptr() != tensor.data_ptr():
            _release_pages(tensor)
    module.load_state_dict(fitted | extra, assign=True)


def _as_kind(tensor: Tensor, own: Tensor) -> Tensor:
    """A tensor with the shape and the kind of number of the network's own, if no value changes."""
    if own.ndim == 0 and tensor.shape == (1,):  # as torch 0.3 wrote numbers
        tensor = tensor[0]
    if own.is_floating_point() or own.dtype == tensor.dtype:
        return tensor
    cast = tensor.to(own.dtype)
    return cast if torch.equal(cast.to(tensor.dtype), tensor) else tensor


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
    """Release a mapped tensor's whole pages, which count as memory since they were read."""
    if _madvise is None or not tensor.is_contiguous():
        return
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file that is complete or absent; equal content gives equal bytes.

    The safetensors library writes metadata in a random order and copies all tensors to memory
    first; this writes sorted metadata, and one tensor at a time. Tensors may be on any device;
    those that share memory are written separately. AssetError if the file cannot be written, or
    if a value is no tensor.
    """
    if odd := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        fault = f"{str(path)!r} cannot hold {odd[0]!r}, which is no tensor"
        raise AssetError(fault, hint="torch.save writes it")
    # Wide dtypes first, so that every tensor is aligned to its own width.
    order = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in order:
        span = [end, end := end + tensor.nbytes]
        dtype = _dtype_name(tensor.dtype)
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path, AssetError) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, tensor in order:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


@functools.cache
def _dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in a header, as the safetensors library writes it."""
    header = json.loads(save({"x": torch.empty(0, dtype=dtype, device="cpu")})[8:])
    return str(header["x"]["dtype"])
