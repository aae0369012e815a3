"""The names of everything that installed plugins supply, and those that several claim."""

from __future__ import annotations

from collections import defaultdict

import attrs

from ppap_framework.plugin import Card, CardKind, ComponentSpec, DefaultTarget, ExpertBundle
from ppap_framework.registry.discovery import registry
from ppap_framework.registry.lookup import Registry
from ppap_framework.registry.records import Offers, label

# A name that several distributions claim is listed as "distribution:name", once for each.


def list_backends() -> list[str]:
    """The names of the diffusion models, as `backend` takes them."""
    return _names(registry().offers(ComponentSpec, kind="backend"))


def list_guiders() -> list[str]:
    """The names of the networks that can guide, as `guide` takes them."""
    return _names(registry().offers(ComponentSpec, kind="guider"))


def list_losses() -> list[str]:
    """The names of the task losses."""
    return _names(registry().offers(ComponentSpec, kind="loss"))


def list_adapters() -> list[str]:
    """The names of the adapters that experts are made of."""
    return _names(registry().offers(ComponentSpec, kind="adapter"))


def list_checkpoints(component: str | None = None) -> list[str]:
    """The names of a component's published checkpoints, or of all, as `checkpoint=` takes them.

    Those that are only of use together are joined by "+"; those of no use are left out.
    """
    found = registry()
    offers = found.offers(Card)
    if component is not None:
        kinds: tuple[CardKind, ...] = ("backend", "guider")
        offers = [offer for kind in kinds for offer in found.card_offers(component, kind)]
    return _names([(plugin, card) for plugin, card in offers if not card.refusal])


def _names(offers: Offers) -> list[str]:
    pairs = {(by.distribution, getattr(item, "joined", "") or item.name) for by, item in offers}
    names = [name for _, name in pairs]
    return sorted(name if names.count(name) == 1 else f"{owner}:{name}" for owner, name in pairs)


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
    claimed: dict[str, list[str]] = defaultdict(list)  # plugins by subject
    defaults: dict[str, list[str]] = {}
    for plugin, item in found.offers(ComponentSpec | ExpertBundle):
        claimed[label(item)].append(plugin.name)
    for kind, component in dict.fromkeys((c.kind, c.component) for _, c in found.offers(Card)):
        for asked in _forms(found, kind, component):
            cards = found.card_offers(asked, kind)
            for plugin, card in cards:
                claimed[f"checkpoint {card.name!r} of {kind} {asked!r}"].append(plugin.name)
            subject = f"default checkpoint of {kind} {asked!r}"
            defaults[subject] = _equals(found, kind, asked, [o for o in cards if o[1].default])
    targets = (target for _, target in found.offers(DefaultTarget))
    for guider, checkpoint in dict.fromkeys((t.guider, t.checkpoint) for t in targets):
        for asked in _forms(found, "guider", guider):
            subject = f"default target of guider {asked!r} with checkpoint {checkpoint!r}"
            aims = found.target_offers(asked, checkpoint)
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
