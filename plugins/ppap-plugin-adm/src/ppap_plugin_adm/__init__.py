"""Ablated diffusion models (ADM): the U-Net, the noise-aware classifier and their checkpoints."""

from __future__ import annotations

from ppap_plugin_adm.build import build

__all__ = ["build"]
