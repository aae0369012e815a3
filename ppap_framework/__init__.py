"""Steer a diffusion model by any off-the-shelf vision network.

    import ppap_framework as ppap

    backend = ppap.backend("adm")
    guide = ppap.guide("classifier", target="red cube", scale=4)
    result = ppap.sample(backend, guides=[guide], num=8, steps=25, seed=0)
    result.save("out/")

The method is PPAP (Go et al. 2023, arXiv 2212.05973). Importing this package imports nothing heavy;
torch comes with the first call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppap_framework.api import ModuleGuide, Result, backend, guide, sample
    from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError

__all__ = [
    "AssetError",
    "ModuleGuide",
    "PluginError",
    "PpapError",
    "Result",
    "UsageError",
    "backend",
    "guide",
    "sample",
]

_ERRORS = ("AssetError", "PluginError", "PpapError", "UsageError")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "errors" if name in _ERRORS else "api"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
