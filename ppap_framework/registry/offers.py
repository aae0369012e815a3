"""What plugins offer under a name, and whose offer goes first.

An offer is a record with the plugin that supplies it. For a component, those of its own
distribution come first, and those of rivals, which supply another component of that name, are left
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from ppap_framework.plugin import (
    Asset,
    Card,
    CardKind,
    ComponentKind,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
)
from ppap_framework.registry.records import Conflict, PluginRecord, label, split

_A = TypeVar("_A", bound=ComponentSpec | Asset)
_N = TypeVar("_N", bound=ComponentSpec | Card | ExpertBundle)
Offers = list[tuple[PluginRecord, _A]]
Plugins = Sequence[PluginRecord]


def supplied(plugins: Plugins, of_type: type[_A]) -> Offers[_A]:
    """All records of a type."""
    return [
        (plugin, item)
        for plugin in plugins
        for item in (*plugin.specs, *plugin.assets)
        if isinstance(item, of_type)
    ]


def named(found: Offers[_N], name: str) -> Offers[_N]:
    """The offers of a name, perhaps "distribution:name"."""
    distribution, bare = split(name)
    return [o for o in found if o[1].name == bare and distribution in (None, o[0].distribution)]


def claims_of(plugins: Plugins, kind: ComponentKind, name: str) -> Offers[ComponentSpec]:
    """The components of a kind and name."""
    return named([o for o in supplied(plugins, ComponentSpec) if o[1].kind == kind], name)


def cards_of(plugins: Plugins, component: str, kind: CardKind) -> Offers[Card]:
    """The checkpoints of a component."""
    bare = split(component)[1]
    found = [o for o in supplied(plugins, Card) if (o[1].kind, o[1].component) == (kind, bare)]
    return _own_first(plugins, kind, component, found)


def targets_of(plugins: Plugins, guider: str, checkpoint: str) -> Offers[DefaultTarget]:
    """The default targets of a guider with a checkpoint."""
    wanted = (split(guider)[1], split(checkpoint)[1])
    found = [
        o for o in supplied(plugins, DefaultTarget) if (o[1].guider, o[1].checkpoint) == wanted
    ]
    return _own_first(plugins, "guider", guider, found)


def distinct(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The sorted names of (distribution, name), as "distribution:name" if several claim one."""
    pairs = set(pairs)
    names = [name for _, name in pairs]
    return sorted(n if names.count(n) == 1 else f"{owner}:{n}" for owner, n in pairs)


def find_conflicts(plugins: Plugins) -> list[Conflict]:
    """Every name that several plugins claim, and every default that none of them owns."""
    claimed: dict[str, list[str]] = {}  # by subject, plugins
    defaults: dict[str, list[str]] = {}
    for plugin in plugins:
        for item in (*plugin.specs, *plugin.assets):
            if isinstance(item, ComponentSpec | ExpertBundle):
                claimed.setdefault(label(item), []).append(plugin.name)
    every_card = (card for _, card in supplied(plugins, Card))
    for component, kind in dict.fromkeys((card.component, card.kind) for card in every_card):
        for asked in _forms(plugins, kind, component):
            found = cards_of(plugins, asked, kind)
            for plugin, card in found:
                subject = f"checkpoint {card.name!r} of {kind} {asked!r}"
                claimed.setdefault(subject, []).append(plugin.name)
            chosen = [offer for offer in found if offer[1].default]
            subject = f"default checkpoint of {kind} {asked!r}"
            defaults[subject] = _equals(plugins, kind, asked, chosen)
    every_target = (target for _, target in supplied(plugins, DefaultTarget))
    for guider, checkpoint in dict.fromkeys((t.guider, t.checkpoint) for t in every_target):
        for asked in _forms(plugins, "guider", guider):
            subject = f"default target of guider {asked!r} with checkpoint {checkpoint!r}"
            aims = targets_of(plugins, asked, checkpoint)
            defaults[subject] = _equals(plugins, "guider", asked, aims)
    return [
        *(Conflict(what, tuple(by)) for what, by in claimed.items() if len(by) > 1),
        *(Conflict(what, tuple(by), by[0]) for what, by in defaults.items() if len(by) > 1),
    ]


def _owners(plugins: Plugins, kind: CardKind, component: str) -> set[str]:
    return {plugin.distribution for plugin, _ in claims_of(plugins, kind, component)}


def _own_first(plugins: Plugins, kind: CardKind, component: str, found: Offers[_A]) -> Offers[_A]:
    owners = _owners(plugins, kind, component)
    rivals = _owners(plugins, kind, split(component)[1]) - owners if owners else set()
    return sorted(
        (offer for offer in found if offer[0].distribution not in rivals),
        key=lambda offer: offer[0].distribution not in owners,
    )


def _forms(plugins: Plugins, kind: CardKind, name: str) -> list[str]:
    """The forms in which to ask for a component: by distribution if several claim the name."""
    owners = sorted(_owners(plugins, kind, name))
    return [f"{owner}:{name}" for owner in owners] if len(owners) > 1 else [name]


def _equals(plugins: Plugins, kind: CardKind, component: str, found: Offers[Any]) -> list[str]:
    """The plugins of offers between which nothing but the distribution's name decides."""
    owners = _owners(plugins, kind, component)
    own = [plugin.name for plugin, _ in found if plugin.distribution in owners]
    return own or [plugin.name for plugin, _ in found]
