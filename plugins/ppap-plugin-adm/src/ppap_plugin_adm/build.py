"""From a checkpoint's record (class name and constructor arguments) to the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ppap_framework.errors import PpapError
from ppap_plugin_adm.classifier import EncoderUNetModel
from ppap_plugin_adm.config import EncoderConfig, TrunkConfig, UNetConfig
from ppap_plugin_adm.trunk import Trunk
from ppap_plugin_adm.unet import SuperResModel, UNetModel

_NETWORKS: dict[str, tuple[Any, type[TrunkConfig]]] = {
    "guided_diffusion.unet.UNetModel": (UNetModel, UNetConfig),
    "guided_diffusion.unet.SuperResModel": (SuperResModel, UNetConfig),
    "guided_diffusion.unet.EncoderUNetModel": (EncoderUNetModel, EncoderConfig),
}


def build(official_class: str, config: Mapping[str, Any]) -> Trunk:
    """Construct a freshly initialised network that takes a released checkpoint's state dict as it is.

    Args:
        official_class: Name of the published class, such as "guided_diffusion.unet.UNetModel".
        config: Its constructor's arguments. `use_fp16` is recorded but casts nothing: load float32 weights,
            then call `cast_torso(torch.float16)`.

    Raises:
        PpapError: if the class or an argument is unknown, one is missing, or the architecture is impossible.
    """
    if official_class not in _NETWORKS:
        raise PpapError(
            f"network class {official_class!r} is unknown", hint=f"one of {', '.join(_NETWORKS)}"
        )
    network, record = _NETWORKS[official_class]
    fields = {field.name: field for field in attrs.fields(record)}
    required = {name for name, field in fields.items() if field.default is attrs.NOTHING}
    if unknown := sorted(set(config) - set(fields)):
        raise PpapError(
            f"{official_class} has no argument {', '.join(unknown)}",
            hint=f"its arguments are {', '.join(fields)}",
        )
    if missing := sorted(required - set(config)):
        raise PpapError(f"{official_class} lacks {', '.join(missing)}", hint="add them to the config")
    built: Trunk = network(record(**config))
    return built
