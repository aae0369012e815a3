"""The origin of components that plugins make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ppap_framework.checkpoints import Checkpoint
from ppap_framework.origin import Origin
from ppap_framework.plugin import Card, ComponentSpec
from ppap_framework.registry import Registry

__all__ = ["made_from", "suppliers"]


def made_from(
    plugins: Registry,
    spec: ComponentSpec,
    options: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    seconds: float,
    others: Sequence[ComponentSpec | None] = (),
) -> Origin:
    """The origin of a component that a plugin made.

    Args:
        plugins: The registry.
        spec: The component's.
        options: As given.
        checkpoint: Its weights.
        seconds: That loading took.
        others: Components that belong to it, such as a loss.
    """
    provider = plugins.provider(spec)
    made = plugins.options(spec, options)
    fields = () if made is None else attrs.fields(type(made))
    card = checkpoint.card if checkpoint else None
    dtype = checkpoint.dtype if checkpoint else None
    return Origin(
        component=spec.name,
        distribution=provider.distribution,
        version=provider.version,
        checkpoint=checkpoint.name if checkpoint else None,
        path=checkpoint.path if checkpoint else None,
        sha256=checkpoint.sha256 if checkpoint else None,
        options=dict(options),
        resolved={f.alias or f.name: getattr(made, f.name) for f in fields if f.init},
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        load_seconds=seconds,
        suppliers=suppliers(plugins, spec, *others, card),
    )


def suppliers(plugins: Registry, *items: ComponentSpec | Card | None) -> dict[str, str | None]:
    """Versions of the distributions that supply these."""
    providers = [plugins.provider(item) for item in items if item is not None]
    return {provider.distribution: provider.version for provider in providers}
