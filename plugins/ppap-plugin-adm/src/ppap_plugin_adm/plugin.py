"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import Asset, BackendSpec, GuiderSpec, hookimpl
from ppap_plugin_adm.released import cards

PPAP_API = (1, 0)


@hookimpl
def ppap_backends() -> list[BackendSpec]:
    """The backend `adm`."""
    return [
        BackendSpec(
            name="adm",
            summary="Ablated diffusion models, unconditional or class-conditional",
            factory="ppap_plugin_adm.backend:make_adm",
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `adm-classifier`."""
    return [
        GuiderSpec(
            name="adm-classifier",
            summary="ADM's own classifier, trained with labels on noisy images",
            factory="ppap_plugin_adm.guider:make_adm_classifier",
            task="classification",
            default_loss="cross-entropy",
            noise_aware=True,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_assets() -> list[Asset]:
    """The cards of the released checkpoints."""
    return [*cards()]
