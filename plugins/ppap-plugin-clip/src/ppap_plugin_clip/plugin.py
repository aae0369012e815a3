"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)

_TASK = "image-text-embedding"  # GLIDE's noised CLIP has a task and a loss of its own


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `clip-text`."""
    return [
        GuiderSpec(
            name="clip-text",
            summary="CLIP, SigLIP or a similar network of transformers: how an image fits a text",
            factory="ppap_plugin_clip.guider:make_clip_text",
            options="ppap_plugin_clip.options:ClipTextOptions",
            task=_TASK,
            default_loss="embedding-spherical",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The losses `embedding-spherical` and `embedding-cosine`."""
    return [
        TaskLossSpec(
            name="embedding-spherical",
            summary="Half the squared angle between embeddings",
            factory="ppap_plugin_clip.loss:Spherical",
            task=_TASK,
            licence="Apache-2.0",
        ),
        TaskLossSpec(
            name="embedding-cosine",
            summary="One minus the cosine of embeddings",
            factory="ppap_plugin_clip.loss:Cosine",
            task=_TASK,
            licence="Apache-2.0",
        ),
    ]
