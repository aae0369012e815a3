"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `detection`."""
    return [
        GuiderSpec(
            name="detection",
            summary="Object detectors of transformers and torchvision: boxes with classes",
            factory="ppap_plugin_detection.guider:make_detection",
            options="ppap_plugin_detection.options:DetectionOptions",
            task="detection",
            default_loss="boxes",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `boxes`."""
    return [
        TaskLossSpec(
            name="boxes",
            summary="Set matching of boxes: cross-entropy, L1 distance and generalized IoU",
            factory="ppap_plugin_detection.loss:Boxes",
            options="ppap_plugin_detection.options:BoxesOptions",
            task="detection",
            licence="Apache-2.0",
        )
    ]
