"""From the user's choice to a checkpoint: names of cards, paths of files, and several joined."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ppap_framework.checkpoints._checkpoint import (
    ARCHITECTURE,
    Checkpoint,
    common_architecture,
    join_checkpoints,
    open_checkpoint,
)
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card

if TYPE_CHECKING:
    from ppap_framework.registry import Registry

_CARD_NAME = re.compile(r"([\w.-]+:)?[a-z0-9]+(-[a-z0-9]+)*")


def find_checkpoint(
    registry: Registry,
    component: str | None,
    kind: Literal["backend", "guider"] | None,
    wanted: str | Path | None,
    *,
    offline: bool = False,
) -> Checkpoint:
    """The checkpoint that is asked for, its containers verified.

    Args:
        registry: Registry of the cards.
        component: Name of the backend or guider that uses it; None for any, and any use.
        kind: Which of the two it is.
        wanted: Name of a card, path of a file, CARD=PATH for a file of a card under another name,
            or several of these joined by "+". If a file does not state what it is, the card that
            publishes a file of this name counts. None takes the component's default card.
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
    text = os.fspath(wanted or "")
    joined = "+" in text and not Path(text).expanduser().exists()
    if joined and "" in text.split("+"):
        raise AssetError(
            f"{text!r} does not say what is to be joined",
            hint="type names or files with a '+' between, such as glide-base+glide-upsample",
        )
    found = [_find(each, card, cards) for each in (text.split("+") if joined else [wanted or ""])]
    parts = [part for part, _ in found]
    if len(parts) > 1:  # before anything is downloaded
        common_architecture(parts)
    if component is not None:
        _check_use([of for _, of in found if of is not None], card)
    opened = [
        open_checkpoint(part, offline=offline) if isinstance(part, Card) else part for part in parts
    ]
    return opened[0] if len(opened) == 1 else join_checkpoints(opened)


def _find(
    wanted: str | Path, card: Callable[[str], Card], cards: Sequence[Card]
) -> tuple[Card | Checkpoint, Card | None]:
    """A card or an open file, and the card of a file that does not state what it is."""
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
    prefixes = {card.prefix for card in cards}
    for card in cards:
        if card.refusal:
            raise AssetError(
                f"checkpoint {card.name!r} cannot be used: {card.refusal}",
                hint="`ppap checkpoints list` shows others",
            )
        needed = card.joined.split("+") if card.joined else []
        if {named(name).prefix for name in needed} - prefixes:
            raise AssetError(
                f"checkpoint {card.name!r} is of no use alone", hint=f"type {card.joined}"
            )
