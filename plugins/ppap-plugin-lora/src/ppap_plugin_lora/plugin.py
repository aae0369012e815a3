"""Hooks of this plugin."""

from __future__ import annotations

from ppap_framework.plugin import AdapterSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_expert_adapters() -> list[AdapterSpec]:
    """The adapter `lora`."""
    return [
        AdapterSpec(
            name="lora",
            summary="Low-rank changes of the weights of linear, convolution and attention layers",
            factory="ppap_plugin_lora.adapter:make_lora",
            default={"rank": 16, "alpha": 8.0},
            options="ppap_plugin_lora.options:LoraOptions",
            licence="Apache-2.0",
        )
    ]
