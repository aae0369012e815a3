"""Builds networks from class names and constructor arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import nn

from ppap_framework.author import UsageError
from ppap_plugin_adm.config import read_config
from ppap_plugin_glide.config import (
    BASE,
    CLIP,
    INPAINT_BASE,
    INPAINT_UPSAMPLER,
    UPSAMPLER,
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
    BASE: Text2ImUNet,
    UPSAMPLER: SuperResText2ImUNet,
    INPAINT_BASE: InpaintText2ImUNet,
    INPAINT_UPSAMPLER: SuperResInpaintText2ImUnet,
}
_IMAGE_ENCODER = "glide_text2im.clip.encoders.ImageEncoder"
_TEXT_ENCODER = "glide_text2im.clip.encoders.TextEncoder"


def build(official_class: str, config: Mapping[str, Any]) -> nn.Module:
    """Build an initialised network that loads a released state dict unchanged.

    Args:
        official_class: Name of the published class, such as
            "glide_text2im.text2im_model.Text2ImUNet".
        config: Constructor arguments. An encoder of the noised CLIP also accepts the configuration
            of the pair, with which its checkpoint was released.

    Raises:
        UsageError: If the class or an argument is unknown, or an argument is missing or invalid.
    """
    if official_class in _UNETS:
        return _UNETS[official_class](read_config(official_class, TextUNetConfig, config))
    if official_class not in (_IMAGE_ENCODER, _TEXT_ENCODER, CLIP):
        names = ", ".join([*_UNETS, _IMAGE_ENCODER, _TEXT_ENCODER, CLIP])
        raise UsageError(f"network class {official_class!r} is unknown", hint=f"one of {names}")
    if official_class == CLIP or "logit_scale" in config:
        both = read_config(official_class, NoisedClipConfig, config)
        if official_class == CLIP:
            return NoisedClip(both)
        config = attrs.asdict(
            both.image_encoder if official_class == _IMAGE_ENCODER else both.text_encoder
        )
    if official_class == _IMAGE_ENCODER:
        return ImageEncoder(read_config(official_class, ImageEncoderConfig, config))
    return TextEncoder(read_config(official_class, TextEncoderConfig, config))
