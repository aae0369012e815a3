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
HOME = "ppap_plugin_toy"


@hookimpl
def ppap_backends() -> list[BackendSpec]:
    return [BackendSpec(name="toy", summary="A Gaussian.", factory=f"{HOME}.parts:make_backend")]


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    return [
        GuiderSpec(
            name="colour",
            summary="Sees which channel is brightest.",
            factory=f"{HOME}.parts:make_colour",
            options=f"{HOME}.options:ColourOptions",
            task="colour",
            default_loss="toy-cross-entropy",
        ),
        GuiderSpec(
            name="grey",
            summary="Sees brightness, a number for each pixel.",
            factory=f"{HOME}.parts:make_grey",
            options=f"{HOME}.options:GreyOptions",
            task="brightness",
            default_loss="toy-square",
            needs_checkpoint=False,
        ),
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    losses = [
        ("toy-cross-entropy", "Cross-entropy.", "CrossEntropy", "colour"),
        ("toy-margin", "A margin.", "Margin", "colour"),
        ("toy-square", "Squares.", "Square", "brightness"),
        ("toy-distance", "Metres.", "Distance", "brightness"),
    ]
    return [
        TaskLossSpec(name=name, summary=summary, factory=f"{HOME}.parts:{cls}", task=task)
        for name, summary, cls, task in losses
    ]


@hookimpl
def ppap_expert_adapters() -> list[AdapterSpec]:
    return [AdapterSpec(name="toy-shift", summary="Adds.", factory=f"{HOME}.parts:make_shift")]


@hookimpl
def ppap_assets() -> list[Asset]:
    file = {"sha256": None, "size": None, "image_size": 8, "licence": "Apache-2.0", "default": True}
    weights = [
        ("toy-8", "toy", "backend"),
        ("colour-3", "colour", "guider"),
        ("grey-1", "grey", "guider"),
    ]
    cards = [
        Card(
            name=name,
            component=component,
            kind=kind,
            summary="Made by the tests.",
            uri=f"package://{HOME}/{name}.safetensors",
            **file,
        )
        for name, component, kind in weights
    ]
    return [*cards, DefaultTarget(guider="colour", checkpoint="colour-3", text="green")]
