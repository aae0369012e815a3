"""Where a component came from, for the record of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.components import GuidanceModel, TaskLoss
from ppap_framework.experts import guide_sha256, has_experts
from ppap_framework.plugin import Card, ComponentSpec
from ppap_framework.registry import Registry

__all__ = ["Origin", "own_sha256", "resolved", "suppliers"]


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


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
