"""What the toy distribution supplies."""

from __future__ import annotations

from ppap_framework.plugin import (
    AdapterSpec,
    Asset,
    BackendSpec,
    Card,
    DefaultTarget,
    GuiderSpec,
    TaskLossSpec,
    hookimpl,
)

PPAP_API = (1, 0)


@hookimpl
def ppap_backends() -> list[BackendSpec]:
    return [
        BackendSpec(name="toy", summary="A Gaussian.", factory="ppap_plugin_toy.parts:make_backend")
    ]


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    return [
        GuiderSpec(
            name="colour",
            summary="Sees which channel is brightest.",
            factory="ppap_plugin_toy.parts:make_colour",
            options="ppap_plugin_toy.options:ColourOptions",
            task="colour",
            default_loss="toy-cross-entropy",
        ),
        GuiderSpec(
            name="grey",
            summary="Sees brightness, a number for each pixel.",
            factory="ppap_plugin_toy.parts:make_grey",
            options="ppap_plugin_toy.options:GreyOptions",
            task="brightness",
            default_loss="toy-square",
            needs_checkpoint=False,
        ),
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    parts = "ppap_plugin_toy.parts"
    return [
        TaskLossSpec(
            name="toy-cross-entropy",
            summary="Cross-entropy.",
            factory=f"{parts}:CrossEntropy",
            task="colour",
        ),
        TaskLossSpec(
            name="toy-margin", summary="A margin.", factory=f"{parts}:Margin", task="colour"
        ),
        TaskLossSpec(
            name="toy-square", summary="Squares.", factory=f"{parts}:Square", task="brightness"
        ),
        TaskLossSpec(
            name="toy-distance", summary="Metres.", factory=f"{parts}:Distance", task="brightness"
        ),
    ]


@hookimpl
def ppap_expert_adapters() -> list[AdapterSpec]:
    return [
        AdapterSpec(name="toy-shift", summary="Adds.", factory="ppap_plugin_toy.parts:make_shift")
    ]


def _card(name: str, component: str, kind: str, size: int) -> Card:
    return Card(
        name=name,
        component=component,
        kind=kind,  # type: ignore[arg-type]  # the two literals below
        summary="Made by the tests.",
        uri=f"package://ppap_plugin_toy/{name}.safetensors",
        sha256=None,
        size=None,
        licence="Apache-2.0",
        image_size=size,
        default=True,
    )


@hookimpl
def ppap_assets() -> list[Asset]:
    return [
        _card("toy-8", "toy", "backend", 8),
        _card("colour-3", "colour", "guider", 8),
        _card("grey-1", "grey", "guider", 8),
        DefaultTarget(guider="colour", checkpoint="colour-3", text="green"),
    ]
