"""Builds networks from class names and constructor arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ppap_framework.author import UsageError
from ppap_plugin_adm.classifier import EncoderUNetModel
from ppap_plugin_adm.config import AdmConfig, EncoderConfig, UNetConfig, read_config
from ppap_plugin_adm.trunk import Trunk
from ppap_plugin_adm.unet import SuperResModel, UNetModel

_NETWORKS: dict[str, tuple[Callable[[Any], Trunk], type[AdmConfig]]] = {
    "guided_diffusion.unet.UNetModel": (UNetModel, UNetConfig),
    "guided_diffusion.unet.SuperResModel": (SuperResModel, UNetConfig),
    "guided_diffusion.unet.EncoderUNetModel": (EncoderUNetModel, EncoderConfig),
}


def build(official_class: str, config: Mapping[str, Any]) -> Trunk:
    """Build an initialised network that loads a released state dict unchanged.

    Args:
        official_class: Name of the published class, such as "guided_diffusion.unet.UNetModel".
        config: Constructor arguments. `use_fp16` is recorded but casts nothing: load the
            float32 weights, then call `cast_torso(torch.float16)`.

    Raises:
        UsageError: If the class or an argument is unknown, or an argument is missing or invalid.
    """
    if official_class not in _NETWORKS:
        raise UsageError(
            f"network class {official_class!r} is unknown", hint=f"one of {', '.join(_NETWORKS)}"
        )
    network, record = _NETWORKS[official_class]
    return network(read_config(official_class, record, config))
