"""Files that `torch.save` wrote: read for their tensors, never for anything else.

They are pickles, and a pickle may ask for any function to be called. torch's restricted unpickler
(`weights_only`) builds tensors and plain containers and raises at everything else, before it is
called.
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

__all__ = ["ZIP_MAGIC", "load_archive"]

ZIP_MAGIC = b"PK\x03\x04"
_TIED = 4  # times the file; networks save a weight that they use twice under two names
_WRAPPINGS = ("state_dict", "model")  # where training programs put the weights among other things


def load_archive(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that `torch.save` wrote, on the CPU.

    It is mapped from the file where its format allows. It may stand alone or under "state_dict" or
    "model", as training programs save it.

    Raises:
        AssetError: Where the file is damaged, wants code to run, or holds no state dict.
        OSError: Where the file cannot be read.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_MAGIC
    if zipped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged pickle
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"{str(path)!r} is a truncated or damaged checkpoint: {type(error).__name__}: {reason}",
            hint="fetch or save it again",
        ) from error
    state = _state_dict(path, loaded)
    size, unpacked = path.stat().st_size, sum(t.numel() * t.element_size() for t in state.values())
    if unpacked > _TIED * size:
        raise AssetError(
            f"{str(path)!r} has {size} bytes, and its tensors would take {unpacked} bytes",
            hint="they repeat what is there once; save it again with contiguous tensors",
        )
    return state


def _check_archive(path: Path) -> None:
    """Verify what can be verified without unpickling: that the zip archive is whole and no bomb.

    Raises:
        AssetError: Where it is not.
        OSError: Where the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise AssetError(
            f"{str(path)!r} is a truncated or damaged checkpoint: {error}",
            hint="fetch or save it again",
        ) from error
    size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
    # torch stores its members uncompressed, so an honest file is never larger inside than outside.
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise AssetError(
            f"{str(path)!r} is a compressed archive, {unpacked} bytes in {size}; torch writes none",
            hint="unpack it first if a checkpoint lies within; otherwise do not trust it",
        )


def _refusal(path: Path, error: pickle.UnpicklingError) -> AssetError:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted is None:
        return AssetError(
            f"{str(path)!r} cannot be read: its pickle is damaged or holds more than tensors",
            hint="save the bare state dict again, best as safetensors",
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
    raise AssetError(
        f"{str(path)!r} holds no state dict: {_summary(loaded)}",
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


def _summary(loaded: object) -> str:
    if not isinstance(loaded, Mapping):
        return f"it is a {type(loaded).__name__}"
    keys = [repr(key)[:40] for key in list(loaded)[:3]]
    return (
        f"it maps {', '.join(keys)}{', ...' if len(loaded) > 3 else ''}"
        if keys
        else "it is an empty mapping"
    )
