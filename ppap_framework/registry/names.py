"""The names of everything that installed plugins supply, and those that several claim."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import attrs

from ppap_framework.plugin import Card, ComponentKind, ComponentSpec, DefaultTarget, ExpertBundle
from ppap_framework.registry.discovery import registry
from ppap_framework.registry.lookup import Registry
from ppap_framework.registry.records import Item, Offers, label

# A name that several distributions claim is listed as "distribution:name", once for each.


def list_backends() -> list[str]:
    """The names of the diffusion models, as `backend` takes them."""
    return _components("backend")


def list_guiders() -> list[str]:
    """The names of the networks that can guide, as `guide` takes them."""
    return _components("guider")


def list_losses() -> list[str]:
    """The names of the task losses."""
    return _components("loss")


def list_adapters() -> list[str]:
    """The names of the adapters that experts are made of."""
    return _components("adapter")


def list_checkpoints(component: str | None = None) -> list[str]:
    """The names of a component's published checkpoints, or of all, as `checkpoint=` takes them.

    Those that are only of use together are joined by "+"; those of no use are left out.
    """
    found = registry()
    offers = found.offers(Card)
    if component is not None:
        offers = [*found.card_offers(component, "backend"), *found.card_offers(component, "guider")]
    cards = [(by.distribution, card.joined or card.name) for by, card in offers if not card.refusal]
    return _listed(cards)


def _components(kind: ComponentKind) -> list[str]:
    offers = registry().offers(ComponentSpec, kind=kind)
    return _listed([(plugin.distribution, spec.name) for plugin, spec in offers])


def _listed(owned: Iterable[tuple[str, str]]) -> list[str]:
    pairs = set(owned)
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
    for plugin, spec in found.offers(ComponentSpec):
        claimed[label(spec)].append(plugin.name)
    for plugin, bundle in found.offers(ExpertBundle):
        claimed[label(bundle)].append(plugin.name)
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


def _forms(found: Registry, kind: ComponentKind, name: str) -> list[str]:
    """The names to ask for a component by: with distributions if several claim the name."""
    owners = sorted(found.owners(kind, name))
    return [f"{owner}:{name}" for owner in owners] if len(owners) > 1 else [name]


def _equals(
    found: Registry, kind: ComponentKind, component: str, offers: Offers[Item]
) -> list[str]:
    """The plugins among which only the distribution's name decides."""
    owners = found.owners(kind, component)
    own = [plugin.name for plugin, _ in offers if plugin.distribution in owners]
    return own or [plugin.name for plugin, _ in offers]
