"""Files that `torch.save` wrote. Only their tensors are read.

They are pickles, and a pickle may ask for any function to be called. torch's restricted unpickler
(`weights_only`) builds tensors and plain containers, and raises before it calls anything else.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ppap_framework.errors import AssetError

__all__ = ["load_archive"]

_TIED = 4  # times the file's size; a weight that a network uses twice is saved under two names
_WRAPPINGS = ("state_dict", "model")  # keys under which training programs save the weights


def load_archive(path: Path, *, zipped: bool) -> dict[str, Tensor]:
    """Read a state dict, which may be the whole file or stand under "state_dict" or "model".

    Args:
        path: File that `torch.save` wrote.
        zipped: Whether it is a zip archive, which is mapped, and not a bare pickle.

    Raises:
        AssetError: If the file is damaged, wants code to run, or holds no state dict.
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    if zipped:
        _check_archive(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged pickles cause warnings
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    state = _state_dict(path, loaded)
    unpacked = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if unpacked > _TIED * size:
        raise AssetError(
            f"{str(path)!r} has {size} bytes, and its tensors would take {unpacked} bytes",
            hint="they repeat the same bytes; save it again with contiguous tensors",
        )
    return state


def _check_archive(path: Path, size: int) -> None:
    """Refuse a zip archive that is incomplete or a bomb, without unpacking it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    # torch stores members uncompressed: an honest file is never larger inside than outside.
    unpacked = sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise AssetError(
            f"{str(path)!r} is a compressed archive, {unpacked} bytes in {size}; torch writes none",
            hint="unpack it if it contains a checkpoint; otherwise do not trust it",
        )


def _damaged(path: Path, reason: str) -> AssetError:
    reason = " ".join(reason.split())[:200]
    return AssetError(
        f"{str(path)!r} is a truncated or damaged checkpoint: {reason}",
        hint="fetch or save it again",
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
            return {str(name): tensor.detach() for name, tensor in candidate.items()}
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
