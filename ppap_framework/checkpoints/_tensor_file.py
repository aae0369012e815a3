"""Files of tensors: detecting their kind, reading them, and writing safetensors.

Files that `torch.save` wrote are pickles, and a pickle may ask for any function to be called.
torch's restricted unpickler (`weights_only`) builds tensors and plain containers, and raises before
it calls anything else.
"""

from __future__ import annotations

import difflib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ppap_framework.errors import AssetError
from ppap_framework.files import replacing

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_TIED = 4  # times the file's size; a weight that a network uses twice is saved under two names
_WRAPPINGS = ("state_dict", "model")  # keys under which training programs save the weights
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}


def read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Verify a file and read it. If its kind can be mapped, tensors are read when they are used.

    Returns:
        The strings that a safetensors file carries beside its tensors, and all tensors by name, on
        the CPU. Changes to them stay in memory.

    Raises:
        AssetError: If it is missing, damaged, of another kind, or wants code to run.
    """
    try:
        kind = container(path)
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return metadata, load_file(path)
        if kind == "zip":
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged pickles cause warnings
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except AssetError:
        raise
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:300]
        raise AssetError(
            f"{str(path)!r} is a truncated or damaged checkpoint: {type(error).__name__}: {reason}",
            hint="fetch or save it again",
        ) from error
    return {}, _state_dict(path, loaded)


def container(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    """The kind of a file, by its first bytes or else its name. The first two kinds are mapped.

    Raises:
        AssetError: If it is missing, empty or of another kind.
        OSError: If it cannot be read.
    """
    if path.is_dir():
        raise AssetError(f"{str(path)!r} is a folder, not a checkpoint", hint=_neighbors(path, ""))
    if not path.is_file():
        raise AssetError(f"there is no file {str(path)!r}", hint=_neighbors(path.parent, path.name))
    with path.open("rb") as file:
        first = file.read(64)
    if not first:
        raise AssetError(f"{str(path)!r} is empty", hint="fetch or save it again")
    if first[8:9] == b"{":  # the header, after its length
        return "safetensors"
    if first.startswith((b"PK\x03\x04", b"\x80")):  # torch.save: zip, or an old bare pickle
        if path.suffix == ".safetensors":
            raise AssetError(
                f"{str(path)!r} is not safetensors but a pickle under a false name",
                hint="do not trust it; if you know better, rename it to end in .pt",
            )
        return "zip" if first.startswith(b"PK") else "pickle"
    if first.startswith(b"version https://git-lfs"):
        raise AssetError(
            f"{str(path)!r} is a pointer of Git LFS, not the file", hint="type `git lfs pull`"
        )
    if first.lstrip().startswith(b"<"):
        raise AssetError(
            f"{str(path)!r} is a web page, not a checkpoint", hint="download the file itself"
        )
    if path.suffix == ".safetensors":
        return "safetensors"  # damaged; the reader explains
    raise AssetError(
        f"{str(path)!r} is neither a safetensors file nor one that torch.save wrote",
        hint=f"a checkpoint ends in one of {', '.join(_SUFFIXES)}",
    )


def _neighbors(folder: Path, name: str) -> str:
    try:
        files = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)
    except OSError:
        return f"there is no folder {str(folder)!r} either"
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.5) or files[:3]
    where = repr(str(folder))
    return f"in {where} there is {', '.join(close)}" if close else f"{where} holds no checkpoints"


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is incomplete or a bomb, without unpacking it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # torch stores members uncompressed: an honest file is never larger inside than outside.
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise AssetError(
            f"{str(path)!r} is a compressed archive, {unpacked} bytes in {size}; torch writes none",
            hint="unpack it if it contains a checkpoint; otherwise do not trust it",
        )


def _refusal(path: Path, error: pickle.UnpicklingError) -> AssetError:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted is None:
        return AssetError(
            f"{str(path)!r} cannot be read: its pickle is damaged or holds more than tensors",
            hint="save the bare state dict again, preferably as safetensors",
        )
    return AssetError(
        f"{str(path)!r} wants {wanted[1]} to be called when it is loaded; nothing was run",
        hint="if you trust its origin, load it yourself and save its state dict as safetensors",
    )


def _state_dict(path: Path, loaded: object) -> dict[str, Tensor]:
    candidates = [loaded]
    if isinstance(loaded, Mapping):
        candidates += [loaded[key] for key in _WRAPPINGS if key in loaded]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(map(_is_plain, candidate.values())):
            state = {str(name): tensor.detach() for name, tensor in candidate.items()}
            size, unpacked = (
                path.stat().st_size,
                sum(t.numel() * t.element_size() for t in state.values()),
            )
            if unpacked > _TIED * size:
                raise AssetError(
                    f"{str(path)!r} has {size} bytes, and its tensors would take {unpacked} bytes",
                    hint="they repeat the same bytes; save it again with contiguous tensors",
                )
            return state
    what = type(loaded).__name__
    if isinstance(loaded, Mapping):
        what = f"mapping of {', '.join(repr(key)[:40] for key in list(loaded)[:3]) or 'nothing'}"
    raise AssetError(
        f"{str(path)!r} holds no state dict, but a {what}",
        hint='a checkpoint maps names to tensors, alone or under "state_dict" or "model"',
    )


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file that is complete or absent; equal content gives equal bytes.

    The safetensors library writes metadata in a random order and copies all tensors to memory
    first; this writes sorted metadata, and one tensor at a time. Tensors that share memory are
    written separately.

    Args:
        path: File to write or replace; missing folders are created.
        tensors: Tensors by name, on any device. No name may be `__metadata__`.
        metadata: Strings by name.

    Raises:
        AssetError: If the file cannot be written.
    """
    # Wide dtypes first, so that every tensor is aligned to its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path, AssetError) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
