"""From what a user asks for to a checkpoint: names of cards, paths of files, and several joined."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ppap_framework.checkpoints._checkpoint import (
    Checkpoint,
    join_checkpoints,
    open_as,
    open_checkpoint,
)
from ppap_framework.checkpoints._fetch import location
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card

if TYPE_CHECKING:
    from ppap_framework.registry import Registry

__all__ = ["find_checkpoint"]

_CARD_NAME = re.compile(r"([\w.-]+:)?[a-z0-9]+(-[a-z0-9]+)*")


def find_checkpoint(
    registry: Registry,
    component: str,
    kind: Literal["backend", "guider"],
    wanted: str | Path | None,
    *,
    offline: bool = False,
) -> Checkpoint:
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
    ]
    return opened[0] if len(opened) == 1 else join_checkpoints(opened)


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
    prefixes = {card.prefix for card in cards}
    for card in cards:
        if card.refusal:
            raise AssetError(
                f"checkpoint {card.name!r} cannot be used: {card.refusal}",
                hint="`ppap checkpoints list` shows others",
            )
        needed = card.joined.split("+") if card.joined else []
        if {registry.card(component, kind, name).prefix for name in needed} - prefixes:
            raise AssetError(
                f"checkpoint {card.name!r} is of no use alone", hint=f"type {card.joined}"
            )
