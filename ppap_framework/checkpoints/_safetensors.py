"""The safetensors container: the header is verified before a single tensor is touched.

A file is an 8-byte little-endian length N, N bytes of JSON, and the tensors' bytes. The JSON maps
each tensor's name to its dtype, shape and [begin, end) among those bytes, and `__metadata__` to a
string-to-string object. Tensors must cover the bytes without gap or overlap
(https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppap_framework.errors import AssetError

__all__ = ["Header", "load_safetensors", "read_header", "write_safetensors"]

_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; what the safetensors library accepts
_MAX_DIMENSIONS = 64  # what torch accepts


@attrs.frozen
class Header:
    """What a verified header says.

    Attributes:
        metadata: The strings under `__metadata__`.
        shapes: The shape of each tensor, by name.
    """

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Read and verify the header of a safetensors file.

    Raises:
        AssetError: Where it contradicts itself, the format, or the size of the file.
        OSError: Where the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            _refuse(path, f"its header claims {length} bytes, the file has {size} in all")
        if length > _MAX_HEADER:
            _refuse(path, f"its header claims {length} bytes, more than the format's {_MAX_HEADER}")
        text = file.read(length)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header is not valid JSON: {error}")
    if not isinstance(content, dict):
        _refuse(path, "its header is not a JSON object")

    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        _refuse(path, "its __metadata__ does not map strings to strings")
    extents = [_extent(path, name, entry) for name, entry in content.items()]
    _check_coverage(path, extents, size - 8 - length)
    return Header(metadata, {name: tuple(entry["shape"]) for name, entry in content.items()})


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors, mapped from the file and read when first used; changes stay in memory.

    Raises:
        AssetError: As `read_header`, and where the safetensors library refuses the file.
        OSError: Where the file cannot be read.
    """
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, RuntimeError, ValueError) as error:
        _refuse(path, str(error))


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file that is either complete under its name or not there.

    The library's own writer puts metadata in a random order; here equal content gives equal bytes,
    so that a recipe that is run twice gives one SHA-256. Tensors that share memory are written out
    each.

    Args:
        path: Replaced where it exists; its folder must exist.
        tensors: Of any device and layout in memory; names must not be `__metadata__`.
        metadata: Written in sorted order.

    Raises:
        AssetError: Where the file cannot be written.
    """
    # Wide dtypes first keeps every tensor aligned to its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for name in order:
                    flat = tensors[name].detach().cpu().contiguous().reshape(-1)
                    file.write(flat.view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise AssetError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} stands there twice")
        result[name] = value
    return result


def _extent(path: Path, name: str, entry: object) -> tuple[int, int, str]:
    """Where one tensor lies, once its own entry is known to be consistent: (begin, end, name)."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"the entry of tensor {name!r} is not of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        _refuse(
            path, f"tensor {name!r} is of dtype {dtype!r}, which is none of {', '.join(_DTYPES)}"
        )
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _refuse(path, f"tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}")
    begin, end = offsets
    if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
        _refuse(
            path,
            f"tensor {name!r} of {shape} {dtype} cannot fill bytes {begin} to {end}",
        )
    return begin, end, name


def _are_counts(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _check_coverage(path: Path, extents: list[tuple[int, int, str]], size: int) -> None:
    position = 0
    for begin, end, name in sorted(extents):
        if begin != position:
            fault = (
                "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            )
            _refuse(path, f"tensor {name!r} at bytes {begin} to {end} {fault}")
        position = end
    if position != size:
        _refuse(path, f"its tensors need {position} bytes, and {size} are there")


def _refuse(path: Path, reason: str) -> NoReturn:
    reason = " ".join(reason.split())
    if len(reason) > 300:
        reason = reason[:299] + "…"
    raise AssetError(
        f"{str(path)!r} is not a sound safetensors file: {reason}",
        hint="it is truncated or damaged; fetch or save it again",
    )
