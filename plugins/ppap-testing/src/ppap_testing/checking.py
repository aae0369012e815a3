"""The suite of an installed component."""

from __future__ import annotations

from typing import Any

from ppap_framework.errors import PluginError
from ppap_framework.plugin import ComponentKind, ComponentSpec
from ppap_framework.registry import normal, registry, split
from ppap_testing.adapters import AdapterConformance
from ppap_testing.backends import BackendConformance
from ppap_testing.guiders import GuiderConformance
from ppap_testing.losses import TaskLossConformance
from ppap_testing.suite import Conformance

SUITES: dict[ComponentKind, type[Conformance]] = {
    "backend": BackendConformance,
    "guider": GuiderConformance,
    "loss": TaskLossConformance,
    "adapter": AdapterConformance,
}


def components_of(name: str) -> list[tuple[ComponentKind, str]]:
    """Kinds and names of the components of that name, or of the distribution of that name.

    Raises:
        PluginError: If there are none, or several distributions claim the name.
    """
    found, (distribution, bare) = registry(), split(name)
    if offers := found.offers(ComponentSpec, name):
        kinds = dict.fromkeys(spec.kind for _, spec in offers)
        return [(kind, name) for kind in kinds if found.spec(kind, name)]
    records = [r for r in found.records if r.distribution == normal(distribution or bare)]
    for record in records:
        if record.status != "ok":
            fault = f"plugin {record.name} is {record.status}: {record.reason}"
            raise PluginError(fault, hint=record.hint or "`ppap doctor` shows the traceback")
    specs = [] if distribution else [(record, spec) for record in records for spec in record.specs]
    if not specs:
        fault = f"no component and no plugin with components is called {name!r}"
        raise PluginError(fault, hint="`ppap plugins list` shows what there is")
    return [(spec.kind, f"{record.distribution}:{spec.name}") for record, spec in specs]


def suite_of(kind: ComponentKind, component: str, **settings: Any) -> type[Conformance]:
    """The suite of a component; settings that are None or for another kind are left out."""
    base = SUITES[kind]
    own = {k: value for k, value in settings.items() if value is not None and hasattr(base, k)}
    return type(f"Test{kind.title()}", (base,), {"component": component, **own})
