"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import AdapterSpec, BackendSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_backends() -> list[BackendSpec]:
    """The backend `diffusers`."""
    return [
        BackendSpec(
            name="diffusers",
            summary="Pipelines of diffusers, from a folder, from the hub, or already loaded",
            factory="ppap_plugin_diffusers.backend:make_diffusers",
            options="ppap_plugin_diffusers.options:DiffusersOptions",
            licence="Apache-2.0",
            opens="ppap_plugin_diffusers.folder:open_pipeline",
            wraps="diffusers.pipelines.pipeline_utils.DiffusionPipeline",
        )
    ]


@hookimpl
def ppap_expert_adapters() -> list[AdapterSpec]:
    """The adapter `stem`."""
    return [
        AdapterSpec(
            name="stem",
            summary="A small network through which experts of any guide read noisy latents",
            factory="ppap_plugin_diffusers.stem:make_stem",
            options="ppap_plugin_diffusers.options:StemOptions",
            licence="Apache-2.0",
            reads_latents=True,
        )
    ]
