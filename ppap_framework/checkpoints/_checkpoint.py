"""From the user's choice to an open checkpoint, its architecture, and saving one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch
from torch import Tensor

from ppap_framework.checkpoints._fetch import fetch
from ppap_framework.checkpoints._tensor_file import read_file, wrapper, write_safetensors
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.files import expanded, file_sha256
from ppap_framework.plugin import Card, CardKind

if TYPE_CHECKING:
    from ppap_framework.registry import Registry

ARCHITECTURE = "ppap.architecture"
"""Metadata key of the architecture."""

_CARD_NAME = re.compile(r"([\w.-]+:)?[a-z0-9]+(-[a-z0-9]+)*")

_Record = TypeVar("_Record", bound=attrs.AttrsInstance)


@attrs.frozen(eq=False)
class Checkpoint:
    """Weights whose files are verified as containers; tensors are read on demand.

    Attributes:
        name: Name of the card, or of the file.
        files: Prefix of the names of a file's tensors, by file.
        architecture: Description from which a factory builds the network; empty if unknown.
        metadata: Strings that a safetensors file carries beside its tensors.
        card: Card that was asked for; None for a file.
        dtype: Type to which weights are cast as far as the network computes in it; None for none.
    """

    name: str
    files: Mapping[Path, str]
    architecture: Mapping[str, Any] = attrs.field(factory=dict)
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    card: Card | None = None
    dtype: torch.dtype | None = None

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return next(iter(self.files))

    @property
    def sha256(self) -> str:
        """SHA-256 of the file; of several files, SHA-256 of their concatenated hashes."""
        first, *others = (file_sha256(path) for path in self.files)
        return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU, mapped from the files if their format allows.

        A prefix "module.", "_orig_mod." or "model." of all names of a file is left out.
        """
        found: dict[str, Tensor] = {}
        for path, prefix in self.files.items():
            state = read_file(path)[1]
            end = len(wrapper(state))
            found |= {f"{prefix}{name[end:]}": tensor for name, tensor in state.items()}
        return found


def find_checkpoint(
    registry: Registry,
    component: str | None,
    kind: CardKind | None,
    wanted: str | Path | None,
    *,
    offline: bool = False,
) -> Checkpoint:
    """The checkpoint asked for, its containers verified; for any use, or one component of a kind.

    It is wanted by the name of a card, the path of a file, CARD=PATH for a file of a card under
    another name, or several of these joined by "+"; None is the component's default card. If a file
    does not state what it is, the card of a file of this name counts. `offline` never downloads.

    AssetError if it is missing, damaged or of no use; PluginError if several plugins claim a name.
    """
    if component is None or kind is None:
        named, cards = registry.card_named, registry.every_card()
    elif wanted is None:
        return open_checkpoint(registry.default_card(component, kind), offline=offline)
    else:
        named, cards = partial(registry.card, component, kind), registry.cards(component, kind)
    text = os.fspath(wanted or "")
    joined = "+" in text and not expanded(text).exists()
    texts = text.split("+") if joined else [wanted or ""]
    if joined and "" in texts:
        hint = "type names or files with a '+' between, such as glide-base+glide-upsample"
        raise AssetError(f"{text!r} does not say what is to be joined", hint=hint)
    found = [_find(each, named, cards) for each in texts]
    parts = [part for part, _ in found]
    if joined:  # before anything is downloaded
        _common_architecture(parts)
    of = [card for _, card in found if card and component is not None]
    for card in of:
        needed = {named(name).prefix for name in card.joined.split("+") if name}
        if needed - {other.prefix for other in of}:
            fault = f"checkpoint {card.name!r} is of no use alone"
            raise AssetError(fault, hint=f"type {card.joined}")
    opened = [open_checkpoint(p, offline=offline) if isinstance(p, Card) else p for p in parts]
    return join_checkpoints(opened) if joined else opened[0]


def _find(
    wanted: str | Path, named: Callable[[str], Card], cards: Sequence[Card]
) -> tuple[Card | Checkpoint, Card | None]:
    """A card or an open file, and the card of a file that does not state what it is."""
    text = os.fspath(wanted)
    if isinstance(wanted, str) and _CARD_NAME.fullmatch(text):
        try:
            card = named(text)
        except AssetError:
            if not Path(text).is_file():
                raise
        else:
            return card, card
    name, equals, path = text.partition("=")
    if equals and _CARD_NAME.fullmatch(name) and not Path(text).exists():
        of: Card | None = named(name)
        opened = open_checkpoint(path, like=of)
        if of and of.architecture and opened.architecture != of.architecture:
            hint = f"leave out {of.name}=, or name the file that it is of"
            fault = f"{opened.name!r} states what it is, and that is not {of.name!r}"
            raise AssetError(fault, hint=hint)
    else:
        published = [each for each in cards if each.uri.rpartition("/")[2] == Path(text).name]
        of = published[0] if len(published) == 1 else None
        opened = open_checkpoint(text, like=of)
    return opened, None if ARCHITECTURE in opened.metadata else of


def open_checkpoint(
    source: Card | Path | str, *, like: Card | None = None, offline: bool = False
) -> Checkpoint:
    """Open a file, or that of a card, and verify its container; if the format allows, no tensor is
    read. A card's missing file is downloaded, unless `offline`. The card `like` says what a file is
    that does not. AssetError if it is missing, damaged, not the card's, or wants code to run.
    """
    if isinstance(source, Card):
        card, like, path, name = source, source, fetch(source, offline=offline), source.name
    else:
        card, path = None, expanded(source)
        name = path.name
    metadata, _ = read_file(path)
    if like is not None and ARCHITECTURE not in metadata:
        return Checkpoint(name, {path: like.prefix}, like.architecture, metadata, card)
    try:
        stated = json.loads(metadata.get(ARCHITECTURE, "{}"))
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        fault = f"the architecture that {str(path)!r} states is not a JSON object"
        raise AssetError(fault, hint="save it again")
    return Checkpoint(name, {path: ""}, stated, metadata, card)


def _common_architecture(parts: Sequence[Card | Checkpoint]) -> dict[str, Any]:
    """The architecture of several networks of one component, each under its own prefix."""
    name = "+".join(part.name for part in parts)
    architecture: dict[str, Any] = {}
    prefixes: list[str] = []
    for part in parts:
        stated = part.architecture
        differing = [key for key in stated if architecture.get(key, stated[key]) != stated[key]]
        if differing:
            fault = f"they differ in {', '.join(map(repr, differing))}"
            hint = "join the networks of one component, such as glide-base+glide-upsample"
            raise AssetError(f"the parts of {name!r} do not belong together: {fault}", hint=hint)
        architecture |= stated
        prefixes += [part.prefix] if isinstance(part, Card) else part.files.values()
    unknown = "" in prefixes and not parts[prefixes.index("")].architecture
    if unknown or len(set(prefixes)) < len(prefixes):
        fault = f"the parts of {name!r} are not different networks of one component"
        raise AssetError(fault, hint="join files of which each holds one network")
    return architecture


def join_checkpoints(parts: Sequence[Checkpoint]) -> Checkpoint:
    """Join networks of one component; AssetError if they differ in what they state."""
    architecture = _common_architecture(parts)
    files = {path: prefix for part in parts for path, prefix in part.files.items()}
    return Checkpoint("+".join(part.name for part in parts), files, architecture)


def read_architecture(checkpoint: Checkpoint, record: type[_Record]) -> _Record:
    """The architecture of a checkpoint as an attrs record, whose validators check the values.
    AssetError if nothing is stated, a field is missing or unknown, or a value is refused.
    """
    if not checkpoint.architecture:
        hint = "name what it is, as CARD=PATH with a card of `ppap checkpoints list`"
        raise AssetError(f"{checkpoint.name!r} does not state its architecture", hint=hint)
    try:
        return record(**checkpoint.architecture)
    except (TypeError, ValueError, UsageError) as error:
        reason = error.message if isinstance(error, UsageError) else str(error.args[0])
        reason = " ".join(reason.rpartition(".__init__() ")[2].split())
        hint = f"it must state {', '.join(attrs.fields_dict(record))}"
        fault = f"{checkpoint.name!r} is of another architecture: {reason}"
        raise AssetError(fault, hint=hint) from error


def save_checkpoint(
    path: Path,
    state_dict: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    card_notes: Mapping[str, Any] | None = None,
) -> None:
    """Write or replace a safetensors file that `open_checkpoint` understands, with equal bytes for
    equal content. `architecture` is what the component's factory needs, and `card_notes` are
    others, such as recipe, seed and metrics; both are JSON. AssetError if it cannot be written.
    """
    metadata = {"format": "pt"}  # transformers 4 refuses files without it
    metadata[ARCHITECTURE] = json.dumps(architecture, sort_keys=True)
    if card_notes:
        metadata["ppap.notes"] = json.dumps(card_notes, sort_keys=True)
    write_safetensors(path, state_dict, metadata)
