"""The names of everything that installed plugins supply; imports no torch.

A name that several distributions claim is listed as "distribution:name", once for each.
"""

from __future__ import annotations

from ppap_framework.plugin import ComponentSpec
from ppap_framework.registry.discovery import registry
from ppap_framework.registry.lookup import Offers


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
    cards = found.every_card()
    if component is not None:
        cards = [*found.cards(component, "backend"), *found.cards(component, "guider")]
    return _names([(found.provider(card), card) for card in cards if not card.refusal])


def _names(offers: Offers) -> list[str]:
    pairs = {(by.distribution, getattr(item, "joined", "") or item.name) for by, item in offers}
    names = [name for _, name in pairs]
    return sorted(name if names.count(name) == 1 else f"{owner}:{name}" for owner, name in pairs)
