from __future__ import annotations

import attrs

from ppap_framework.plugin import Card, CardKind, ComponentSpec, DefaultTarget, ExpertBundle
from ppap_framework.registry.lookup import Offers, Registry
from ppap_framework.registry.records import label


@attrs.frozen
class Conflict:
    """Several plugins that claim what only one can have.

    Attributes:
        subject: The claimed thing, such as "guider 'depth'".
        claims: The names of the plugins, in order.
        taken: The claim that is used all the same; None if asking for the name is an error.
    """

    subject: str
    claims: tuple[str, ...]
    taken: str | None = None


def conflicts(found: Registry) -> list[Conflict]:
    """Every name that several plugins claim, and every default that none of them owns."""
    claimed: dict[str, list[str]] = {}  # plugins by subject
    defaults: dict[str, list[str]] = {}
    for plugin, item in found.offers(ComponentSpec | ExpertBundle):
        claimed.setdefault(label(item), []).append(plugin.name)
    every_card = (card for _, card in found.offers(Card))
    for kind, component in dict.fromkeys((card.kind, card.component) for card in every_card):
        for asked in _forms(found, kind, component):
            cards = found.own_first(kind, asked, found.offers(Card, kind=kind, component=component))
            for plugin, card in cards:
                subject = f"checkpoint {card.name!r} of {kind} {asked!r}"
                claimed.setdefault(subject, []).append(plugin.name)
            chosen = [offer for offer in cards if offer[1].default]
            subject = f"default checkpoint of {kind} {asked!r}"
            defaults[subject] = _equals(found, kind, asked, chosen)
    every_target = (target for _, target in found.offers(DefaultTarget))
    for guider, checkpoint in dict.fromkeys((t.guider, t.checkpoint) for t in every_target):
        targets = found.offers(DefaultTarget, guider=guider, checkpoint=checkpoint)
        for asked in _forms(found, "guider", guider):
            subject = f"default target of guider {asked!r} with checkpoint {checkpoint!r}"
            aims = found.own_first("guider", asked, targets)
            defaults[subject] = _equals(found, "guider", asked, aims)
    return [
        *(Conflict(what, tuple(by)) for what, by in claimed.items() if len(by) > 1),
        *(Conflict(what, tuple(by), by[0]) for what, by in defaults.items() if len(by) > 1),
    ]


def _forms(found: Registry, kind: CardKind, name: str) -> list[str]:
    """The names to ask for a component by: with distributions if several claim the name."""
    owners = sorted(found.owners(kind, name))
    return [f"{owner}:{name}" for owner in owners] if len(owners) > 1 else [name]


def _equals(found: Registry, kind: CardKind, component: str, offers: Offers) -> list[str]:
    """The plugins among which only the distribution's name decides."""
    owners = found.owners(kind, component)
    own = [plugin.name for plugin, _ in offers if plugin.distribution in owners]
    return own or [plugin.name for plugin, _ in offers]
