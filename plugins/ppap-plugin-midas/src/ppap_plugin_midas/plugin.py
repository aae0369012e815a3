"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `depth`."""
    return [
        GuiderSpec(
            name="depth",
            summary="MiDaS_small, or any depth network of transformers (DPT, Depth Anything, GLPN)",
            factory="ppap_plugin_midas.guider:make_depth",
            options="ppap_plugin_midas.options:DepthOptions",
            task="depth",
            default_loss="depth-ssi",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The losses `depth-ssi` and `depth-mse`."""
    return [
        TaskLossSpec(
            name="depth-ssi",
            summary="Absolute difference of depth maps, whatever their scale and shift",
            factory="ppap_plugin_midas.loss:ScaleShiftInvariant",
            task="depth",
            licence="Apache-2.0",
        ),
        TaskLossSpec(
            name="depth-mse",
            summary="Squared difference of depth maps as they are",
            factory="ppap_plugin_midas.loss:DepthMSE",
            task="depth",
            licence="Apache-2.0",
        ),
    ]
