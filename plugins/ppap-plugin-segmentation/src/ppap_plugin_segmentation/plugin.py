"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `segmentation`."""
    return [
        GuiderSpec(
            name="segmentation",
            summary="Semantic segmentation by torchvision and transformers models",
            factory="ppap_plugin_segmentation.guider:make_segmentation",
            options="ppap_plugin_segmentation.options:SegmentationOptions",
            task="segmentation",
            default_loss="segmentation-cross-entropy",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `segmentation-cross-entropy`."""
    return [
        TaskLossSpec(
            name="segmentation-cross-entropy",
            summary="Cross-entropy with a mask per pixel; KL divergence from teacher to student",
            factory="ppap_plugin_segmentation.loss:SegmentationCrossEntropy",
            options="ppap_plugin_segmentation.options:SegmentationCrossEntropyOptions",
            task="segmentation",
            licence="Apache-2.0",
        )
    ]
