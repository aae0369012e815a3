"""GLIDE: the text-conditional U-Nets, the noised CLIP, their tokenizers and their checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppap_plugin_glide._build import build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    """Import torch only for `build`, since listing plugins imports this package."""
    if name == "build":
        from ppap_plugin_glide._build import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
