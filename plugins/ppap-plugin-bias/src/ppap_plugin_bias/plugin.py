"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import AdapterSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_expert_adapters() -> list[AdapterSpec]:
    """The adapters `bias` and `full`."""
    return [
        AdapterSpec(
            name="bias",
            summary="Biases, norm scales and shifts, and running statistics",
            factory="ppap_plugin_bias.adapter:make_bias",
            default={},
            licence="Apache-2.0",
        ),
        AdapterSpec(
            name="full",
            summary="Every parameter and running statistic; N experts are N times the network",
            factory="ppap_plugin_bias.adapter:make_full",
            licence="Apache-2.0",
        ),
    ]
