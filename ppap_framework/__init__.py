"""Steer a diffusion model by any off-the-shelf vision network.

    import ppap_framework as ppap

    backend = ppap.backend("adm")
    guide = ppap.guide("classifier", target="red cube", scale=4)
    result = ppap.sample(backend, guides=[guide], num=8, seed=0)
    result.save("out/")

The method is PPAP (Go et al. 2023, arXiv 2212.05973). The first call imports torch, not the import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # mypy takes a function for the module of its name, unless it comes from there
    from ppap_framework.data import SyntheticData
    from ppap_framework.data.synthesize import synthesize
    from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
    from ppap_framework.learn import adapt
    from ppap_framework.learn.transfer import transfer
    from ppap_framework.registry.names import (
        list_adapters,
        list_backends,
        list_checkpoints,
        list_guiders,
        list_losses,
    )
    from ppap_framework.run import Compute, GuideRequest, ModuleGuide, Result, Sampling, guide
    from ppap_framework.run.backend import backend
    from ppap_framework.run.sample import sample

__all__ = [
    "AssetError",
    "Compute",
    "GuideRequest",
    "ModuleGuide",
    "PluginError",
    "PpapError",
    "Result",
    "Sampling",
    "SyntheticData",
    "UsageError",
    "adapt",
    "backend",
    "guide",
    "list_adapters",
    "list_backends",
    "list_checkpoints",
    "list_guiders",
    "list_losses",
    "sample",
    "synthesize",
    "transfer",
]

_HOMES = {
    **dict.fromkeys(("AssetError", "PluginError", "PpapError", "UsageError"), "errors"),
    **dict.fromkeys(("SyntheticData", "synthesize"), "data"),
    **dict.fromkeys(("adapt", "transfer"), "learn"),
    **dict.fromkeys((name for name in __all__ if name.startswith("list_")), "registry.names"),
}
"""The modules of what does not come from `run`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "run")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
