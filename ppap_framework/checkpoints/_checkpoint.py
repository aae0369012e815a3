"""Opening checkpoints, joining them, and saving one."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import torch
from torch import Tensor

from ppap_framework.checkpoints._archive import ZIP_MAGIC, load_archive
from ppap_framework.checkpoints._digest import file_sha256
from ppap_framework.checkpoints._fetch import fetch
from ppap_framework.checkpoints._safetensors import load_safetensors, read_header, write_safetensors
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card

__all__ = ["Checkpoint", "join_checkpoints", "open_as", "open_checkpoint", "save_checkpoint"]

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
        prefix: Stands before the names of the file's tensors.
        parts: Where several files are one checkpoint, each of them; `path` is then the first's.
        dtype: What weights are to be cast to while they are loaded, as far as the network computes
            in it; None leaves them as the network has them.
    """

    name: str
    path: Path
    architecture: Mapping[str, Any]
    metadata: Mapping[str, str]
    card: Card | None = None
    prefix: str = ""
    parts: tuple[Checkpoint, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def sha256(self) -> str:
        """Of the file, computed when first asked for; of several, that of their hashes in a row."""
        if not self.parts:
            return file_sha256(self.path)
        return hashlib.sha256("".join(part.sha256 for part in self.parts).encode()).hexdigest()

    @property
    def says_itself(self) -> bool:
        """Whether the file states the architecture, and not a card."""
        return _ARCHITECTURE in self.metadata

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, mapped from the file where its format allows.

        Raises:
            AssetError: Where the file is damaged or is a pickle that wants code to run.
        """
        if self.parts:
            return {name: value for part in self.parts for name, value in part.state_dict().items()}
        load = load_safetensors if _container(self.path) == "safetensors" else load_archive
        state = _reading(self.path, load)
        return {f"{self.prefix}{name}": value for name, value in state.items()}


def open_checkpoint(
    source: Card | Path | str,
    *,
    architecture: Mapping[str, Any] | None = None,
    like: Card | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Find a checkpoint and verify its container; where the format allows, no tensor is read.

    Args:
        source: A card, whose file is downloaded when it is missing, or the path of a file.
        architecture: What to take it for where neither the file nor the card says.
        like: A card that a file at a path is taken to be of, where it does not say what it is.
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
    name = card.name if card else path.name
    if _ARCHITECTURE in metadata:
        stated = _architecture(path, metadata[_ARCHITECTURE])
        return Checkpoint(name, path, stated or architecture or {}, metadata, card)
    known = card or like
    if known is None or not known.architecture:
        return Checkpoint(name, path, architecture or {}, metadata, card)
    return Checkpoint(name, path, known.architecture, metadata, card, known.prefix)


def open_as(path: Path | str, card: Card) -> Checkpoint:
    """Find a file that is said to be of a card.

    Raises:
        AssetError: As `open_checkpoint`, and where the file says itself that it is something else.
    """
    found = open_checkpoint(path, like=card)
    if card.architecture and found.architecture != card.architecture:
        raise AssetError(
            f"{found.name!r} says itself what it is, and that is not {card.name!r}",
            hint=f"leave out {card.name}=, or name the file that it is of",
        )
    return found


def join_checkpoints(parts: Sequence[Checkpoint]) -> Checkpoint:
    """Several files as one checkpoint: the networks of one component, each under its own prefix.

    Raises:
        AssetError: Where two state different things, or bring a tensor of the same name.
    """
    name = "+".join(part.name for part in parts)
    architecture: dict[str, Any] = {}
    for part in parts:
        differing = [
            key for key, value in part.architecture.items() if architecture.get(key, value) != value
        ]
        if differing:
            raise AssetError(
                f"the parts of {name!r} do not belong together: they differ in "
                + ", ".join(map(repr, differing)),
                hint="join the networks of one component, such as glide-base+glide-upsample",
            )
        architecture |= part.architecture
    prefixes = [part.prefix for part in parts]
    if "" in prefixes or len(set(prefixes)) < len(prefixes):
        raise AssetError(
            f"the parts of {name!r} are not different networks of one component",
            hint="join files of which each holds one network",
        )
    return Checkpoint(name, parts[0].path, architecture, {}, parts=tuple(parts))


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
