"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `classifier`."""
    return [
        GuiderSpec(
            name="classifier",
            summary="Any classifier of timm, torchvision or transformers, by name or file",
            factory="ppap_plugin_classifier.guider:make_classifier",
            options="ppap_plugin_classifier.options:ClassifierOptions",
            task="classification",
            default_loss="cross-entropy",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `cross-entropy`."""
    return [
        TaskLossSpec(
            name="cross-entropy",
            summary="Cross-entropy with the target class; KL divergence from teacher to student",
            factory="ppap_plugin_classifier.loss:CrossEntropy",
            options="ppap_plugin_classifier.options:CrossEntropyOptions",
            task="classification",
            licence="Apache-2.0",
        )
    ]
