"""Discovery of plugins, and the way from a name to the component that a plugin supplies.

`discover()` imports every plugin module in isolation and records errors. A `Registry` answers
questions about the result. Only `Registry.make` imports a component's code.
"""

from ppap_framework.registry.conflicts import Conflict, conflicts
from ppap_framework.registry.discovery import check_api, discover, registry
from ppap_framework.registry.listing import (
    list_adapters,
    list_backends,
    list_checkpoints,
    list_guiders,
    list_losses,
)
from ppap_framework.registry.lookup import Registry
from ppap_framework.registry.records import PluginRecord, Status, normal, split
from ppap_framework.registry.refusals import suppliers

__all__ = [
    "Conflict",
    "PluginRecord",
    "Registry",
    "Status",
    "check_api",
    "conflicts",
    "discover",
    "list_adapters",
    "list_backends",
    "list_checkpoints",
    "list_guiders",
    "list_losses",
    "normal",
    "registry",
    "split",
    "suppliers",
]
