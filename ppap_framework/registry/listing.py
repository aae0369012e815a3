"""The names of everything that installed plugins supply; imports no torch."""

from __future__ import annotations

from ppap_framework.registry.discovery import registry


def list_backends() -> list[str]:
    """The names of the diffusion models, as `backend` takes them: "distribution:name" if several
    distributions claim a name.
    """
    return registry().names("backend")


def list_guiders() -> list[str]:
    """The names of the networks that can guide, as `guide` takes them."""
    return registry().names("guider")


def list_losses() -> list[str]:
    """The names of the task losses."""
    return registry().names("loss")


def list_adapters() -> list[str]:
    """The names of the adapters that experts are made of."""
    return registry().names("adapter")


def list_checkpoints(component: str | None = None) -> list[str]:
    """The names of the published checkpoints, as `checkpoint=` takes them.

    Args:
        component: Only those of this backend or guider.
    """
    return registry().card_names(component)
