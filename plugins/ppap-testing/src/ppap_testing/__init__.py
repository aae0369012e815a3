"""For authors of plugins: conformance suites, fake components, and a registry of one's own.

    from ppap_testing import GuiderConformance

    class TestEdges(GuiderConformance):
        component = "edges"
        target = "0.3"
        bad_targets = ("dusk",)

pytest collects the checks of the suite. `ppap plugins check edges` runs them without pytest, and
`ppap new` writes a package that has them. The first use of a name imports torch, not the import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppap_testing.adapters import AdapterConformance
    from ppap_testing.backends import BackendConformance
    from ppap_testing.fakes import FakeBackend, FakeGuider
    from ppap_testing.guiders import GuiderConformance
    from ppap_testing.isolation import isolated_registry
    from ppap_testing.losses import TaskLossConformance
    from ppap_testing.suite import Conformance, NotConformingError, Outcome, run_checks

__all__ = [
    "AdapterConformance",
    "BackendConformance",
    "Conformance",
    "FakeBackend",
    "FakeGuider",
    "GuiderConformance",
    "NotConformingError",
    "Outcome",
    "TaskLossConformance",
    "isolated_registry",
    "run_checks",
]

_HOMES = {
    "AdapterConformance": "adapters",
    "BackendConformance": "backends",
    "GuiderConformance": "guiders",
    "TaskLossConformance": "losses",
    "isolated_registry": "isolation",
    **dict.fromkeys(("FakeBackend", "FakeGuider"), "fakes"),
}
"""The modules of what does not come from `suite`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'suite')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
