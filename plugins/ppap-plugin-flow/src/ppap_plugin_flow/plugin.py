"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `flow`."""
    return [
        GuiderSpec(
            name="flow",
            summary="Features of RAFT: where each point of a reference picture is in the image",
            factory="ppap_plugin_flow.guider:make_flow",
            options="ppap_plugin_flow.options:FlowOptions",
            task="correspondence",
            default_loss="correspondence",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `correspondence`."""
    return [
        TaskLossSpec(
            name="correspondence",
            summary="Cross-entropy of where each point of a reference picture is found",
            factory="ppap_plugin_flow.loss:Correspondence",
            options="ppap_plugin_flow.options:CorrespondenceOptions",
            task="correspondence",
            licence="Apache-2.0",
        )
    ]
