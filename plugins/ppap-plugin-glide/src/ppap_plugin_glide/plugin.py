"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import Asset, BackendSpec, GuiderSpec, TaskLossSpec, hookimpl
from ppap_plugin_glide.released import cards

PPAP_API = (1, 0)


@hookimpl
def ppap_backends() -> list[BackendSpec]:
    """The backend `glide`."""
    return [
        BackendSpec(
            name="glide",
            summary="Text-conditional diffusion with classifier-free guidance, and its upsampler",
            factory="ppap_plugin_glide.backend:make_glide",
            options="ppap_plugin_glide.options:GlideOptions",
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `clip`."""
    return [
        GuiderSpec(
            name="clip",
            summary="GLIDE's noised CLIP: how well a noisy image fits a text",
            factory="ppap_plugin_glide.guider:make_clip",
            task="image-text",
            default_loss="clip-similarity",
            noise_aware=True,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `clip-similarity`."""
    return [
        TaskLossSpec(
            name="clip-similarity",
            summary="The negative cosine between an image's and a text's embedding, scaled",
            factory="ppap_plugin_glide.loss:ClipSimilarity",
            task="image-text",
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_assets() -> list[Asset]:
    """The cards of the released checkpoints."""
    return [*cards()]
