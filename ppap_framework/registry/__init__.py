"""Discovery of plugins, and the way from a name to the component that a plugin supplies.

`discover()` imports every plugin module in isolation and records errors. A `Registry` answers
questions about the result. Only `Registry.make` imports a component's code.
"""

from ppap_framework.registry.discovery import discover as discover
from ppap_framework.registry.discovery import plugin_file as plugin_file
from ppap_framework.registry.discovery import registry as registry
from ppap_framework.registry.lookup import Registry as Registry
from ppap_framework.registry.names import Conflict as Conflict
from ppap_framework.registry.names import conflicts as conflicts
from ppap_framework.registry.records import PluginRecord as PluginRecord
from ppap_framework.registry.records import normal as normal
from ppap_framework.registry.records import split as split
from ppap_framework.registry.refusals import suppliers as suppliers
