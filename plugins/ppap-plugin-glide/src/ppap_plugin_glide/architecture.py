"""The architecture record of a checkpoint, and the networks built from it.

A backend checkpoint holds one or both stages; names begin with "base." or "upsampler.":

{"base": {"official_class": "glide_text2im.text2im_model.Text2ImUNet",
          "config": {...},                                     the constructor's arguments
          "image_size": 64,
          "process": {"schedule": "cosine", "timesteps": 1000}},     as in ppap-plugin-adm
 "upsampler": {"official_class": "glide_text2im.text2im_model.SuperResText2ImUNet",
               "config": {...}, "image_size": 256, "process": {...},
               "recipe": {"respacing": "fast27", "eta": 0.0, "temperature": 0.997}},
 "tokenizer": {...}}               a tokenizer.json, or "gpt2" or "clip"

The recipe is optional; the default is the published one, shown here. Two inpainting networks are
stated alike; the default eta of their upsampler is 1, since the published one samples ancestrally.
The guider's checkpoint holds both encoders; names begin with "image_encoder." or "text_encoder.":

{"official_class": "glide_text2im.clip.model_creation.CLIPModel",
 "config": {...},                                              the published configuration
 "tokenizer": {...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, final

import attrs
import torch
from attrs.validators import and_, gt, in_, instance_of
from tokenizers import Tokenizer
from torch import nn

from ppap_framework.author import AssetError, CascadeSampling, Checkpoint, UsageError, load_into
from ppap_plugin_adm.architecture import Process
from ppap_plugin_glide._build import build
from ppap_plugin_glide.config import BASE, CLIP, INPAINT_BASE, INPAINT_UPSAMPLER, UPSAMPLER
from ppap_plugin_glide.tokens import read_tokenizer
from ppap_plugin_glide.unet import TextUNet
from ppap_plugin_glide.vocabularies import clip_tokenizer, gpt2_tokenizer

__all__ = [
    "ClipArchitecture",
    "GlideArchitecture",
    "StageArchitecture",
    "load_networks",
]

_Record = TypeVar("_Record")
_BASES, _UPSAMPLERS = (BASE, INPAINT_BASE), (UPSAMPLER, INPAINT_UPSAMPLER)
_PUBLISHED = {"gpt2": gpt2_tokenizer, "clip": clip_tokenizer}


def _of(record: type[_Record], name: str, value: Any) -> _Record:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name!r} must be an object, not {value!r}")
    return record(**value)


def _process(value: Any) -> Process:
    process = _of(Process, "process", value)
    process.noise_schedule()
    return process


def _recipe(value: Any) -> CascadeSampling:
    return value if isinstance(value, CascadeSampling) else _of(CascadeSampling, "recipe", value)


def _tokenizer(value: Any) -> Tokenizer:
    if isinstance(value, str) and value in _PUBLISHED:
        value = _PUBLISHED[value]()
    if not isinstance(value, Mapping):
        raise TypeError(f"'tokenizer' must be an object, not {type(value).__name__}")
    return read_tokenizer(value)


@final
@attrs.frozen(kw_only=True)
class StageArchitecture:
    """Architecture of one stage.

    Attributes:
        official_class: Published class of the network.
        config: Constructor arguments of that class.
        image_size: Side of the images, in pixels.
        process: Diffusion process that the network was trained on.
        recipe: Sampling settings; only the upsampler uses them.
    """

    official_class: str = attrs.field(validator=in_((*_BASES, *_UPSAMPLERS)))
    config: Mapping[str, Any] = attrs.field(validator=instance_of(dict))
    image_size: int = attrs.field(validator=and_(instance_of(int), gt(0)))
    process: Process = attrs.field(converter=_process)
    recipe: CascadeSampling = attrs.field(converter=_recipe)

    @recipe.default
    def _published(self) -> CascadeSampling:
        eta = 1.0 if self.inpaints else 0.0
        return CascadeSampling(respacing="fast27", eta=eta, temperature=0.997)

    @property
    def name(self) -> str:
        """Name of the stage, "base" or "upsampler"."""
        return "base" if self.official_class in _BASES else "upsampler"

    @property
    def inpaints(self) -> bool:
        """Whether the network reads the pixels to keep."""
        return self.official_class in (INPAINT_BASE, INPAINT_UPSAMPLER)


def _stage(official_classes: tuple[str, str], name: str, value: Any) -> StageArchitecture:
    stage = _of(StageArchitecture, name, value)
    if stage.official_class not in official_classes:
        raise ValueError(f"{name!r} is a {stage.official_class}, not a {official_classes[0]}")
    return stage


def _base(value: Any) -> StageArchitecture:
    return _stage(_BASES, "base", value)


def _upsampler(value: Any) -> StageArchitecture | None:
    return None if value is None else _stage(_UPSAMPLERS, "upsampler", value)


@final
@attrs.frozen(kw_only=True)
class GlideArchitecture:
    """Architecture of a backend; see the module docstring."""

    base: StageArchitecture = attrs.field(converter=_base)
    tokenizer: Tokenizer = attrs.field(converter=_tokenizer)
    upsampler: StageArchitecture | None = attrs.field(default=None, converter=_upsampler)

    def __attrs_post_init__(self) -> None:
        if self.upsampler is not None and self.upsampler.image_size <= self.base.image_size:
            raise ValueError(
                f"the upsampler draws {self.upsampler.image_size} pixels a side, no more than the "
                f"base with {self.base.image_size}"
            )
        if self.upsampler is not None and self.upsampler.inpaints != self.base.inpaints:
            inpaints = "upsampler" if self.upsampler.inpaints else "base"
            raise ValueError(f"only the {inpaints} inpaints: join two networks that do, or none")


@final
@attrs.frozen(kw_only=True)
class ClipArchitecture:
    """Architecture of a noised CLIP; see the module docstring."""

    official_class: str = attrs.field(validator=in_((CLIP,)))
    config: Mapping[str, Any] = attrs.field(validator=instance_of(dict))
    tokenizer: Tokenizer = attrs.field(converter=_tokenizer)


def load_networks(
    checkpoint: Checkpoint, stated: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> nn.ModuleDict:
    """Build networks and load them from one file, frozen and in evaluation mode.

    Args:
        checkpoint: State dict whose names begin with the name of the network.
        stated: Class and constructor arguments by network name.

    Raises:
        AssetError: If a network cannot be built, or the weights do not fit.
    """
    try:
        with torch.device("meta"):  # no initialisation: the weights replace it
            together = nn.ModuleDict({name: build(*given) for name, given in stated.items()})
    except UsageError as error:
        raise AssetError(f"{checkpoint.name!r}: {error.message}", hint=error.hint) from error
    if checkpoint.dtype is not None:
        for network in together.values():
            if isinstance(network, TextUNet):
                network.cast(checkpoint.dtype)  # on the meta device: weights are cast on loading
    load_into(together, checkpoint, channels_last=True)
    together.requires_grad_(False).eval()
    return together
