"""Discovery of plugins, and the way from a name to the component that a plugin supplies.

`discover()` imports every plugin module on its own and keeps what went wrong as data; a `Registry`
answers questions about what came of it; only `Registry.make` imports a component's code.
"""

from ppap_framework.registry._discovery import check_api, discover, registry
from ppap_framework.registry._records import Conflict, PluginRecord, Status, kind_of, normal, split
from ppap_framework.registry._refusals import FIRST_PARTY
from ppap_framework.registry._registry import Registry
from ppap_framework.registry._selection import Selection

__all__ = [
    "FIRST_PARTY",
    "Conflict",
    "PluginRecord",
    "Registry",
    "Selection",
    "Status",
    "check_api",
    "discover",
    "kind_of",
    "normal",
    "registry",
    "split",
]
