"""From what a user asks for to a checkpoint: names of cards, paths of files, and several joined."""

from __future__ import annotations

<<<<<<< HEAD
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
=======
<<<<<<<< HEAD:ppap_framework/run/origin.py
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.experts import guide_sha256, has_experts
from ppap_framework.plugin import Card, ComponentSpec
from ppap_framework.registry import Registry

__all__ = ["Origin", "own_sha256", "resolved", "suppliers"]


@attrs.frozen(kw_only=True)
class Origin:
    """Where a component came from.

    Attributes:
        component: Its name, or the class of an object that the user brought.
        distribution: That supplies it; None for the user's own.
        version: Of the distribution.
        checkpoint: The name of its checkpoint; None where it has none.
        path: The checkpoint's file.
        sha256: Of that file.
        weights_sha256: Where there is no such file, as for a folder, a name of the hub or a network
            of the user's own: of the values of its weights, as `experts.weights_sha256`. None also
            for a network to which experts are attached.
        options: With which it was made, as they were given.
        resolved: All of them, those included that were left at their defaults.
        dtype: To which its weights were cast while they were loaded; None for as they were stored.
        load_seconds: How long that took.
        suppliers: Versions of the distributions that it came from, weights and loss included.
    """

    component: str
    distribution: str | None = None
    version: str | None = None
    checkpoint: str | None = None
    path: Path | None = None
    sha256: str | None = None
    weights_sha256: str | None = None
    options: dict[str, Any] = attrs.field(factory=dict)
    resolved: dict[str, Any] = attrs.field(factory=dict)
    dtype: str | None = None
    load_seconds: float = 0.0
    suppliers: dict[str, str | None] = attrs.field(factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON, with the options that were given."""
        record = attrs.asdict(self, filter=attrs.filters.exclude("suppliers", "resolved"))
        return record | {
            "path": str(self.path) if self.path else None,
            "options": {name: _plain(value) for name, value in self.options.items()},
            "load_seconds": round(self.load_seconds, 3),
        }

    def resolved_record(self) -> dict[str, Any]:
        """As JSON, with all options."""
        options = {name: _plain(value) for name, value in self.resolved.items()}
        return self.record() | {"options": options}


def resolved(registry: Registry, spec: ComponentSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a component, defaults included.

    Raises:
        UsageError: For options that it does not take.
        PluginError: Where its options cannot be imported.
    """
    options = registry.options(spec, given)
    fields = () if options is None else attrs.fields(type(options))
    return {f.alias or f.name: getattr(options, f.name) for f in fields if f.init}


def own_sha256(model: GuidanceModel) -> str | None:
    """Of the weights of a guide of the user's own; None where experts are attached to it."""
    return None if has_experts(model.network) else guide_sha256(model)


def suppliers(
    registry: Registry, *items: ComponentSpec | Card | TaskLoss | None
) -> dict[str, str | None]:
    """Versions of the distributions that supply these, where one does."""
    providers = [
        registry.provider(item) for item in items if isinstance(item, ComponentSpec | Card)
    ]
    return {provider.distribution: provider.version for provider in providers}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
========
import os
import re
from collections.abc import Sequence
>>>>>>> main
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ppap_framework.checkpoints._checkpoint import (
<<<<<<< HEAD
    ARCHITECTURE,
    Checkpoint,
    common_architecture,
    join_checkpoints,
    open_checkpoint,
)
=======
    Checkpoint,
    join_checkpoints,
    open_as,
    open_checkpoint,
)
from ppap_framework.checkpoints._fetch import location
>>>>>>> main
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card

if TYPE_CHECKING:
    from ppap_framework.registry import Registry

__all__ = ["find_checkpoint"]

_CARD_NAME = re.compile(r"([\w.-]+:)?[a-z0-9]+(-[a-z0-9]+)*")


def find_checkpoint(
    registry: Registry,
<<<<<<< HEAD
    component: str | None,
    kind: Literal["backend", "guider"] | None,
=======
    component: str,
    kind: Literal["backend", "guider"],
>>>>>>> main
    wanted: str | Path | None,
    *,
    offline: bool = False,
) -> Checkpoint:
<<<<<<< HEAD
    """The checkpoint that is asked for, its containers verified.

    Args:
        registry: Registry whose cards count.
        component: Name of the backend or guider that uses it; None for any, and any use.
        kind: Which of the two it is.
        wanted: Name of a card, path of a file, CARD=PATH for a file of a card under another name,
            or several of these joined by "+". A file that does not state what it is is of the card
            that publishes a file of this name. None takes the component's default card.
        offline: Raise instead of downloading.

    Raises:
        AssetError: If there is no such checkpoint, it is damaged, or it cannot be used.
        PluginError: If several plugins claim the name.
    """
    if component is None or kind is None:
        card, cards = registry.card_named, registry.every_card()
    elif wanted is None:
        return open_checkpoint(registry.default_card(component, kind), offline=offline)
    else:
        card, cards = partial(registry.card, component, kind), registry.cards(component, kind)
    found = [_find(part, card, cards) for part in _split(wanted or "")]
    parts = [part for part, _ in found]
    if len(parts) > 1:  # before anything is downloaded
        common_architecture(parts)
    if component is not None:
        _check_use([of for _, of in found if of is not None], card)
    opened = [
        open_checkpoint(part, offline=offline) if isinstance(part, Card) else part for part in parts
=======
    """The checkpoint that is asked for, its header verified and no tensor read.

    Args:
        registry: Whose cards count.
        component: The name of the backend or guider.
        kind: Which of the two it is.
        wanted: The name of a card or the path of a file; a file that does not say what it is is
            what its name says that it is published as, or CARD=PATH says. Several of them, joined
            by "+", are one checkpoint. None is the default card.
        offline: Whether to raise instead of downloading.

    Raises:
        AssetError: Where there is no such thing, it is damaged, or of no use as it is asked for.
        PluginError: Where several plugins claim the name.
    """
    if wanted is None:
        return open_checkpoint(registry.default_card(component, kind), offline=offline)
    text = os.fspath(wanted)
    parts: list[str | Path] = [wanted]
    if "+" in text and not Path(text).expanduser().exists():
        parts = [*text.split("+")]
        if "" in parts:
            raise AssetError(
                f"{text!r} does not say what is to be joined",
                hint="type names or files with a '+' between, such as glide-base+glide-upsample",
            )
    named = [_named(registry, component, kind, part) for part in parts]
    cards = [card for card, _ in named if card is not None]
    if len(named) > 1:  # before anything is downloaded
        join_checkpoints([found for _, found in named])
    _check_use(registry, component, kind, cards)
    opened = [
        found if found.card is None else open_checkpoint(found.card, offline=offline)
        for _, found in named
>>>>>>> main
    ]
    return opened[0] if len(opened) == 1 else join_checkpoints(opened)


<<<<<<< HEAD
def _split(wanted: str | Path) -> list[str | Path]:
    text = os.fspath(wanted)
    if "+" not in text or Path(text).expanduser().exists():
        return [wanted]
    if "" in text.split("+"):
        raise AssetError(
            f"{text!r} does not say what is to be joined",
            hint="type names or files with a '+' between, such as glide-base+glide-upsample",
        )
    return [*text.split("+")]


def _find(
    wanted: str | Path, card: Callable[[str], Card], cards: Sequence[Card]
) -> tuple[Card | Checkpoint, Card | None]:
    """A card or an open file, and the card that the file is of if it does not state what it is."""
    text = os.fspath(wanted)
    if isinstance(wanted, str) and _CARD_NAME.fullmatch(text):
        try:
            named = card(text)
        except AssetError:
            if not Path(text).is_file():
                raise
        else:
            return named, named
    name, equals, path = text.partition("=")
    if equals and _CARD_NAME.fullmatch(name) and not Path(text).exists():
        of: Card | None = card(name)
        opened = open_checkpoint(path, like=of)
        if of and of.architecture and opened.architecture != of.architecture:
            raise AssetError(
                f"{opened.name!r} states what it is, and that is not {of.name!r}",
                hint=f"leave out {of.name}=, or name the file that it is of",
            )
    else:
        published = [each for each in cards if each.uri.rpartition("/")[2] == Path(text).name]
        of = published[0] if len(published) == 1 else None
        opened = open_checkpoint(text, like=of)
    return opened, None if ARCHITECTURE in opened.metadata else of


def _check_use(cards: Sequence[Card], named: Callable[[str], Card]) -> None:
    """Refuse cards that cannot be used, or not without others."""
=======
def _named(
    registry: Registry, component: str, kind: Literal["backend", "guider"], wanted: str | Path
) -> tuple[Card | None, Checkpoint]:
    """What a file is said to be of, where it does not say so itself, and the file; that of a card
    need not be here yet.
    """
    text = os.fspath(wanted)
    if isinstance(wanted, str) and _CARD_NAME.fullmatch(wanted):
        try:
            card: Card | None = registry.card(component, kind, wanted)
        except AssetError:
            if not Path(wanted).is_file():
                raise
            return None, open_checkpoint(wanted)
        assert card is not None
        unseen = Checkpoint(card.name, location(card), card.architecture, {}, card, card.prefix)
        return card, unseen
    name, equals, path = text.partition("=")
    if equals and _CARD_NAME.fullmatch(name) and not Path(text).exists():
        said = card = registry.card(component, kind, name)
        found = open_as(path, said)
    else:
        card = registry.card_of_file(component, kind, Path(text).name)
        found = open_checkpoint(text, like=card)
    return None if found.says_itself else card, found


def _check_use(
    registry: Registry, component: str, kind: Literal["backend", "guider"], cards: Sequence[Card]
) -> None:
    """Refuse what cannot be used as it is asked for."""
>>>>>>> main
    prefixes = {card.prefix for card in cards}
    for card in cards:
        if card.refusal:
            raise AssetError(
                f"checkpoint {card.name!r} cannot be used: {card.refusal}",
                hint="`ppap checkpoints list` shows others",
            )
        needed = card.joined.split("+") if card.joined else []
<<<<<<< HEAD
        if {named(name).prefix for name in needed} - prefixes:
            raise AssetError(
                f"checkpoint {card.name!r} is of no use alone", hint=f"type {card.joined}"
            )
=======
        if {registry.card(component, kind, name).prefix for name in needed} - prefixes:
            raise AssetError(
                f"checkpoint {card.name!r} is of no use alone", hint=f"type {card.joined}"
            )
>>>>>>>> main:ppap_framework/checkpoints/_choice.py
>>>>>>> main
