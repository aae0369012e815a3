from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Origin:
    """The source of a component, for the record of a run.

    Attributes:
        component: Its name, or the class of an object that the user brought.
        distribution: The distribution that supplies it; None for the user's own.
        version: Version of the distribution.
        checkpoint: Name of its checkpoint; None if it has none.
        path: The checkpoint's file, of hash `sha256`.
        weights_sha256: Without such a file (a folder, a name of the hub, the user's network), the
            hash of the weights' values, as `experts.identity` has it; None if experts are attached.
        options: Options that were given; `resolved` includes defaults.
        compared: Options by which experts are compared; see `Registry.resolved`.
        dtype: Type to which the weights were cast; None for as stored.
        load_seconds: Loading time in seconds.
        suppliers: Versions of all distributions involved, those of weights and loss included.
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
    compared: dict[str, Any] = attrs.field(factory=dict)
    dtype: str | None = None
    load_seconds: float = 0.0
    suppliers: dict[str, str | None] = attrs.field(factory=dict)

    @property
    def short_name(self) -> str:
        """The last part of "distribution:name" or of a class's qualified name, in lower case."""
        return self.component.rpartition(":")[2].rpartition(".")[2].lower()

    def record(self, *, resolved: bool = False) -> dict[str, Any]:
        """JSON, with the options that were given, or all of them."""
        left_out = attrs.filters.exclude("suppliers", "resolved", "compared")
        options = self.resolved if resolved else self.options
        return attrs.asdict(self, filter=left_out) | {
            "path": str(self.path) if self.path else None,
            "options": {name: plain(value) for name, value in options.items()},
            "load_seconds": round(self.load_seconds, 3),
        }


def plain(value: Any) -> Any:
    """A value of an option as JSON."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
