"""A registry of one's own, for tests of plugins."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ppap_framework.registry import Registry, registry

_NAME = "ppap-isolated"
_SETTINGS = {
    "PPAP_PLUGINS": _NAME,
    "PPAP_DISABLE_PLUGINS": "",
    "PPAP_STRICT_PLUGINS": "1",
}


@contextlib.contextmanager
def isolated_registry(*modules: str) -> Iterator[Registry]:
    """A context in which these plugin modules are installed, and no other plugin is.

        with isolated_registry("my_package.plugin", "ppap_testing.fakes_plugin"):
            ppap.sample(ppap.backend("fake"), guides=[ppap.guide("mine", target="1")], num=1)

    They are discovered as of a distribution `ppap-isolated`. The command line sees them, too, if it
    is called in this process. PluginError if one of them cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        info = Path(folder, "ppap_isolated-0.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 0\n")
        lines = [f"plugin{index} = {module}" for index, module in enumerate(modules)]
        (info / "entry_points.txt").write_text("\n".join(["[ppap]", *lines]))
        sys.path.insert(0, folder)
        stack.callback(sys.path.remove, folder)
        for name, value in _SETTINGS.items():
            stack.callback(_set, name, os.environ.get(name))
            os.environ[name] = value
        registry.cache_clear()
        stack.callback(registry.cache_clear)
        importlib.invalidate_caches()
        yield registry()


def _set(name: str, value: str | None) -> None:
    os.environ.pop(name)
    if value is not None:
        os.environ[name] = value
