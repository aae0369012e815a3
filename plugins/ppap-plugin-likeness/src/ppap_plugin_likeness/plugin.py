"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)

_TASK = "likeness"
_GUIDERS = {
    "likeness": "Deep features of a timm network, alike at each place (perceptual distance)",
    "style": "Gram matrices of deep features: textures and colours, wherever they are",
    "structure": "Self-similarity of deep features: the layout, whatever it looks like",
}
_LOSSES = {
    "likeness-mean": ("Mean", "Squared distance of features from all references"),
    "likeness-nearest": ("Nearest", "Squared distance of features from the nearest reference"),
}


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guiders `likeness`, `style` and `structure`."""
    return [
        GuiderSpec(
            name=name,
            summary=summary,
            factory=f"ppap_plugin_likeness.guider:make_{name}",
            options="ppap_plugin_likeness.options:"
            + ("LikenessOptions" if name == "likeness" else "FeatureOptions"),
            task=_TASK,
            default_loss="likeness-mean",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
        for name, summary in _GUIDERS.items()
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The losses `likeness-mean` and `likeness-nearest`."""
    return [
        TaskLossSpec(
            name=name,
            summary=summary,
            factory=f"ppap_plugin_likeness.loss:{attribute}",
            task=_TASK,
            licence="Apache-2.0",
        )
        for name, (attribute, summary) in _LOSSES.items()
    ]
