"""The names of everything that installed plugins supply, and those that several claim."""

from __future__ import annotations

from collections import defaultdict

import attrs

from ppap_framework.files import cache_dir
from ppap_framework.plugin import Card, ComponentKind, ComponentSpec, DefaultTarget, ExpertBundle
from ppap_framework.registry.discovery import registry
from ppap_framework.registry.lookup import Registry
from ppap_framework.registry.records import Offers, PluginRecord, label


def list_backends() -> list[str]:
    """The names of the diffusion models, as `backend` takes them."""
    return _listed(registry().offers(ComponentSpec, kind="backend"))


def list_guiders() -> list[str]:
    """The names of the networks that can guide, as `guide` takes them."""
    return _listed(registry().offers(ComponentSpec, kind="guider"))


def list_losses() -> list[str]:
    """The names of the task losses."""
    return _listed(registry().offers(ComponentSpec, kind="loss"))


def list_adapters() -> list[str]:
    """The names of the adapters that experts are made of."""
    return _listed(registry().offers(ComponentSpec, kind="adapter"))


def list_checkpoints(component: str | None = None) -> list[str]:
    """The names of a component's published checkpoints, or of all, as `checkpoint=` takes them.
    Those that are only of use together are joined by "+".
    """
    found = registry()
    cards = found.offers(Card)
    if component is not None:
        cards = [*found.card_offers(component, "backend"), *found.card_offers(component, "guider")]
    return _listed(cards)


def offered(option: str) -> list[str]:
    """Names that an option of the command line takes; none if it takes no names."""
    if option in ("experts", "begin_with"):
        kept = (cache_dir() / "experts").glob("*.experts.safetensors")
        names = [path.name.partition(".experts")[0] for path in kept]
        words = ["auto", "none"] if option == "experts" else []
        return [*words, *(bundle.name for bundle in registry().bundles()), *sorted(names)]
    if option in ("checkpoint", "guider_checkpoint"):
        return list_checkpoints()
    return _listed(registry().offers(ComponentSpec, kind=option))


def _listed(offers: Offers[ComponentSpec] | Offers[Card]) -> list[str]:
    """Names in order; as "distribution:name", once for each, if several distributions claim one."""
    pairs = {(by.distribution, getattr(item, "joined", "") or item.name) for by, item in offers}
    names = [name for _, name in pairs]
    return sorted(name if names.count(name) == 1 else f"{owner}:{name}" for owner, name in pairs)


@attrs.frozen
class Conflict:
    """Several plugins that claim a subject, such as "guider 'depth'", which only one can have.
    `taken` is the claim that is used all the same; None if asking for the name is an error.
    """

    subject: str
    claims: tuple[str, ...]
    taken: str | None = None


def conflicts(found: Registry) -> list[Conflict]:
    """Every name that several plugins claim, and every default that none of them owns."""
    claimed: dict[str, list[str]] = defaultdict(list)  # plugins by subject
    defaults: dict[str, list[str]] = {}
    for plugin in found.records:
        for item in (*plugin.specs, *plugin.assets):
            if isinstance(item, ComponentSpec | ExpertBundle):
                claimed[label(item)].append(plugin.name)
    for kind, component in dict.fromkeys((c.kind, c.component) for _, c in found.offers(Card)):
        for asked in _forms(found, kind, component):
            cards = found.card_offers(asked, kind)
            for plugin, card in cards:
                claimed[f"checkpoint {card.name!r} of {kind} {asked!r}"].append(plugin.name)
            chosen = [plugin for plugin, card in cards if card.default]
            subject = f"default checkpoint of {kind} {asked!r}"
            defaults[subject] = _equals(chosen, found.owners(kind, asked))
    targets = (target for _, target in found.offers(DefaultTarget))
    for guider, checkpoint in dict.fromkeys((t.guider, t.checkpoint) for t in targets):
        for asked in _forms(found, "guider", guider):
            aiming = [plugin for plugin, _ in found.target_offers(asked, checkpoint)]
            subject = f"default target of guider {asked!r} with checkpoint {checkpoint!r}"
            defaults[subject] = _equals(aiming, found.owners("guider", asked))
    return [
        *(Conflict(what, tuple(by)) for what, by in claimed.items() if len(by) > 1),
        *(Conflict(what, tuple(by), by[0]) for what, by in defaults.items() if len(by) > 1),
    ]


def _forms(found: Registry, kind: ComponentKind, name: str) -> list[str]:
    """The names to ask for a component by: with distributions if several claim the name."""
    owners = sorted(found.owners(kind, name))
    return [f"{owner}:{name}" for owner in owners] if len(owners) > 1 else [name]


def _equals(plugins: list[PluginRecord], owners: set[str]) -> list[str]:
    """The plugins among which only the distribution's name decides."""
    own = [plugin.name for plugin in plugins if plugin.distribution in owners]
    return own or [plugin.name for plugin in plugins]
