"""Opening a checkpoint, loading it into a network, and saving one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.checkpoints._archive import ZIP_MAGIC, load_archive
from ppap_framework.checkpoints._digest import file_sha256
from ppap_framework.checkpoints._fetch import fetch
from ppap_framework.checkpoints._safetensors import load_safetensors, read_header, write_safetensors
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card

__all__ = ["Checkpoint", "load_into", "open_checkpoint", "save_checkpoint"]

_ARCHITECTURE = "ppap.architecture"
_NOTES = "ppap.notes"
_OF_TORCH = {"format": "pt"}  # without it transformers 4 refuses a file
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

_T = TypeVar("_T")


@attrs.frozen(eq=False)
class Checkpoint:
    """A file of weights, found and verified as a container; its tensors are read on demand.

    Attributes:
        name: The card's, or the file's.
        path: Where it lies.
        architecture: What the component's factory builds the network from; empty where nobody says.
        metadata: The strings that a safetensors file carries beside its tensors.
        card: The record that led to it, if one did.
    """

    name: str
    path: Path
    architecture: Mapping[str, Any]
    metadata: Mapping[str, str]
    card: Card | None = None

    @property
    def sha256(self) -> str:
        """Of the file, computed when first asked for."""
        return file_sha256(self.path)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, mapped from the file where its format allows.

        Raises:
            AssetError: Where the file is damaged or is a pickle that wants code to run.
        """
        load = load_safetensors if _container(self.path) == "safetensors" else load_archive
        return _reading(self.path, load)


def open_checkpoint(
    source: Card | Path | str,
    *,
    architecture: Mapping[str, Any] | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Find a checkpoint and verify its container; where the format allows, no tensor is read.

    Args:
        source: A card, whose file is downloaded when it is missing, or the path of a file.
        architecture: What to take it for where neither the file nor the card says.
        offline: Whether to raise instead of downloading.

    Raises:
        AssetError: Where the file is missing, empty, damaged, not what its card says, of an
            unknown kind, or a pickle that wants code to run.
    """
    card = source if isinstance(source, Card) else None
    path = fetch(source, offline=offline) if isinstance(source, Card) else Path(source).expanduser()
    metadata: Mapping[str, str] = {}
    if _container(path) == "safetensors":
        metadata = _reading(path, read_header).metadata
    else:
        _reading(path, load_archive)
    stated: Mapping[str, Any] = card.architecture if card else {}
    if _ARCHITECTURE in metadata:
        stated = _architecture(path, metadata[_ARCHITECTURE])
    name = card.name if card else path.name
    return Checkpoint(name, path, stated or architecture or {}, metadata, card)


def load_into(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Give a network the weights of a checkpoint: every key must fit, in name and shape.

    Tensors of the network's own dtype and device are taken as they lie in the mapped file, without
    a copy; others are cast. A network on the meta device lands on the CPU. Its parameters become
    new objects, so optimisers come later.

    Raises:
        AssetError: Where the two differ; the message counts and names what is missing,
            unexpected, or of another shape.
    """
    state = checkpoint.state_dict()
    own = module.state_dict()
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
    if faults:
        raise AssetError(
            f"{checkpoint.name!r} does not fit the {len(own)} keys of {type(module).__name__}: "
            + "; ".join(faults),
            hint="it is of another architecture, or the architecture is stated wrongly",
        )
    fitted = {name: _like(tensor, own[name]) for name, tensor in state.items()}
    module.load_state_dict(fitted, assign=True)


def save_checkpoint(
    path: Path,
    state_dict: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    card_notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a safetensors file that `open_checkpoint` understands; equal content gives equal bytes.

    Args:
        path: Replaced at once, when the whole file is written.
        state_dict: Tensors by name.
        architecture: What the component's factory wants, as JSON.
        card_notes: Anything else worth keeping, as JSON: recipe, steps, seed, metrics.

    Raises:
        AssetError: Where the file cannot be written.
    """
    metadata = {_ARCHITECTURE: json.dumps(architecture, sort_keys=True), **_OF_TORCH}
    if card_notes:
        metadata[_NOTES] = json.dumps(card_notes, sort_keys=True)
    write_safetensors(path, state_dict, metadata)


def _container(path: Path) -> Literal["safetensors", "archive"]:
    """What kind of file it is, by its first bytes and, where those say nothing, its name."""
    first = _first_bytes(path)
    if not first:
        raise AssetError(f"{str(path)!r} is empty", hint="fetch or save it again")
    if first[8:9] == b"{":  # after the length of the header, the header
        return "safetensors"
    if first.startswith((ZIP_MAGIC, b"\x80")):  # torch.save writes zip archives, once bare pickles
        if path.suffix == ".safetensors":
            raise AssetError(
                f"{str(path)!r} is not safetensors but a pickle under a false name",
                hint="do not trust it; if you know better, rename it to end in .pt",
            )
        return "archive"
    if first.startswith(b"version https://git-lfs"):
        raise AssetError(
            f"{str(path)!r} is a pointer of Git LFS, not the file", hint="type `git lfs pull`"
        )
    if first.lstrip().startswith(b"<"):
        raise AssetError(
            f"{str(path)!r} is a web page, not a checkpoint", hint="download the file itself"
        )
    if path.suffix == ".safetensors":
        return "safetensors"  # a damaged one: its reader says in what way
    raise AssetError(
        f"{str(path)!r} is neither a safetensors file nor one that torch.save wrote",
        hint=f"a checkpoint ends in one of {', '.join(_SUFFIXES)}",
    )


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise AssetError(f"{str(path)!r} is a folder, not a checkpoint", hint=_neighbours(path, ""))
    if not path.is_file():
        raise AssetError(
            f"there is no file {str(path)!r}", hint=_neighbours(path.parent, path.name)
        )

    def first(path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read(64)

    return _reading(path, first)


def _neighbours(folder: Path, name: str) -> str:
    try:
        files = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)
    except OSError:
        return f"there is no folder {str(folder)!r} either"
    close = difflib.get_close_matches(name, files, n=3, cutoff=0.5) or files[:3]
    return (
        f"in {str(folder)!r} there is {', '.join(close)}"
        if close
        else f"{str(folder)!r} holds no checkpoints"
    )


def _reading(path: Path, read: Callable[[Path], _T]) -> _T:
    try:
        return read(path)
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _architecture(path: Path, text: str) -> Mapping[str, Any]:
    try:
        architecture = json.loads(text)
    except (ValueError, RecursionError):
        architecture = None
    if not isinstance(architecture, dict):
        raise AssetError(
            f"the architecture that {str(path)!r} states is not a JSON object", hint="save it again"
        )
    return architecture


def _kind(tensor: Tensor) -> str:
    """Shape, and the sort of number where a cast would lose what it means."""
    shape = str(tuple(tensor.shape))
    return (
        shape
        if tensor.is_floating_point()
        else f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"
    )


def _like(tensor: Tensor, own: Tensor) -> Tensor:
    return tensor.to(
        dtype=own.dtype, device="cpu" if own.device == torch.device("meta") else own.device
    )


def _short(name: str) -> str:
    return repr(name) if len(name) <= 100 else f"{name[:99]!r}..."
