"""Where a component came from, for the record of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from ppap_framework.checkpoints import (
    Checkpoint,
    join_checkpoints,
    location,
    open_as,
    open_checkpoint,
)
from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.errors import AssetError
from ppap_framework.experts import guide_sha256, has_experts
from ppap_framework.plugin import Card, ComponentSpec
from ppap_framework.registry import Registry

__all__ = ["Origin", "find_checkpoint", "own_sha256", "resolved", "suppliers"]

_CARD_NAME = re.compile(r"([\w.-]+:)?[a-z0-9]+(-[a-z0-9]+)*")


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


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
