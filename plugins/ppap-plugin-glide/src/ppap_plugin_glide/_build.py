"""From a checkpoint's record (class name and constructor arguments) to the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import nn

from ppap_framework.errors import UsageError
from ppap_plugin_adm.config import read_config
from ppap_plugin_glide.config import (
    ImageEncoderConfig,
    NoisedClipConfig,
    TextEncoderConfig,
    TextUNetConfig,
)
from ppap_plugin_glide.noised_clip import ImageEncoder, NoisedClip, TextEncoder
from ppap_plugin_glide.unet import (
    InpaintText2ImUNet,
    SuperResInpaintText2ImUnet,
    SuperResText2ImUNet,
    Text2ImUNet,
    TextUNet,
)

_UNETS: dict[str, Callable[[TextUNetConfig], TextUNet]] = {
    "glide_text2im.text2im_model.Text2ImUNet": Text2ImUNet,
    "glide_text2im.text2im_model.SuperResText2ImUNet": SuperResText2ImUNet,
    "glide_text2im.text2im_model.InpaintText2ImUNet": InpaintText2ImUNet,
    "glide_text2im.text2im_model.SuperResInpaintText2ImUnet": SuperResInpaintText2ImUnet,
}
_IMAGE_ENCODER = "glide_text2im.clip.encoders.ImageEncoder"
_TEXT_ENCODER = "glide_text2im.clip.encoders.TextEncoder"
_CLIP = "glide_text2im.clip.model_creation.CLIPModel"


def build(official_class: str, config: Mapping[str, Any]) -> nn.Module:
    """Construct a freshly initialised network that takes a released state dict as it is.

    Args:
        official_class: Name of the published class, such as
            "glide_text2im.text2im_model.Text2ImUNet".
        config: Its constructor's arguments. An encoder of the noised CLIP is also built from the
            configuration of the whole pair, which is what its checkpoint was released with.

    Raises:
        UsageError: if the class or an argument is unknown, or an argument is missing or impossible.
    """
    if official_class in _UNETS:
        return _UNETS[official_class](read_config(official_class, TextUNetConfig, config))
    if official_class not in (_IMAGE_ENCODER, _TEXT_ENCODER, _CLIP):
        names = ", ".join([*_UNETS, _IMAGE_ENCODER, _TEXT_ENCODER, _CLIP])
        raise UsageError(f"network class {official_class!r} is unknown", hint=f"one of {names}")
    if official_class == _CLIP or "logit_scale" in config:
        both = read_config(official_class, NoisedClipConfig, config)
        if official_class == _CLIP:
            return NoisedClip(both)
        config = attrs.asdict(
            both.image_encoder if official_class == _IMAGE_ENCODER else both.text_encoder
        )
    if official_class == _IMAGE_ENCODER:
        return ImageEncoder(read_config(official_class, ImageEncoderConfig, config))
    return TextEncoder(read_config(official_class, TextEncoderConfig, config))
