"""Constructor arguments of the GLIDE networks, named as in the released checkpoints.

`cache_text_emb` and `use_fp16` record how a checkpoint was released and have no effect: the caller
encodes its text once and casts the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs.validators import and_, gt, instance_of

from ppap_plugin_adm.config import TrunkConfig

__all__ = [
    "BASE",
    "CLIP",
    "INPAINT_BASE",
    "INPAINT_UPSAMPLER",
    "UPSAMPLER",
    "ImageEncoderConfig",
    "NoisedClipConfig",
    "TextEncoderConfig",
    "TextUNetConfig",
]

# Published class names.
BASE = "glide_text2im.text2im_model.Text2ImUNet"
UPSAMPLER = "glide_text2im.text2im_model.SuperResText2ImUNet"
INPAINT_BASE = "glide_text2im.text2im_model.InpaintText2ImUNet"
INPAINT_UPSAMPLER = "glide_text2im.text2im_model.SuperResInpaintText2ImUnet"
CLIP = "glide_text2im.clip.model_creation.CLIPModel"

_count = and_(instance_of(int), gt(0))


def _vocabulary(instance: TextUNetConfig, attribute: Any, value: object) -> None:
    if not isinstance(value, Mapping) or set(value) != {"n_vocab"}:
        raise TypeError(f"'tokenizer' must be an object with n_vocab, not {value!r}")
    _count(instance, attribute, value["n_vocab"])


def _divides_width(instance: TextUNetConfig, attribute: Any, value: int) -> None:
    if instance.xf_width % value:
        raise ValueError(f"'xf_width' {instance.xf_width} does not divide into {value} 'xf_heads'")


def _divides_image(instance: Any, attribute: Any, value: int) -> None:
    if instance.image_size % value:
        raise ValueError(f"'image_size' {instance.image_size} does not divide into patches {value}")


@attrs.frozen(kw_only=True)
class TextUNetConfig(TrunkConfig):
    """A denoiser with a text transformer.

    Attributes:
        text_ctx: Context length in tokens, padding included.
        xf_width: Width of the transformer.
        xf_layers: Number of its blocks.
        xf_heads: Attention heads of each block, a divisor of the width.
        xf_final_ln: Whether a layer norm follows the last block.
        tokenizer: {"n_vocab": vocabulary size}; the last token is the padding token.
        xf_padding: Whether padded positions have their own embedding.
    """

    text_ctx: int = attrs.field(validator=_count)
    xf_width: int = attrs.field(validator=_count)
    xf_layers: int = attrs.field(validator=_count)
    xf_heads: int = attrs.field(validator=[_count, _divides_width])
    xf_final_ln: bool = attrs.field(validator=instance_of(bool))
    tokenizer: Mapping[str, int] = attrs.field(validator=_vocabulary)
    xf_padding: bool = attrs.field(default=False, validator=instance_of(bool))
    cache_text_emb: bool = False

    @property
    def new_attention_order(self) -> bool:
        """Always False: GLIDE uses the old order."""
        return False


@attrs.frozen(kw_only=True)
class ImageEncoderConfig:
    """The noised CLIP's image encoder; `n_embd` is the width of its embedding."""

    image_size: int = attrs.field(validator=_count)
    patch_size: int = attrs.field(validator=[_count, _divides_image])
    n_embd: int = attrs.field(validator=_count)
    n_head: int = attrs.field(validator=_count)
    n_xf_blocks: int = attrs.field(validator=_count)
    n_head_state: int = attrs.field(default=64, validator=_count)
    n_timestep: int = attrs.field(default=1000, validator=_count)

    @property
    def width(self) -> int:
        """Width of the transformer."""
        return self.n_head * self.n_head_state


@attrs.frozen(kw_only=True)
class TextEncoderConfig:
    """The noised CLIP's text encoder; `n_embd` is the width of its embedding."""

    n_bpe_vocab: int = attrs.field(validator=_count)
    max_text_len: int = attrs.field(validator=_count)
    n_embd: int = attrs.field(validator=_count)
    n_head: int = attrs.field(validator=_count)
    n_xf_blocks: int = attrs.field(validator=_count)
    n_head_state: int = attrs.field(default=64, validator=_count)

    @property
    def width(self) -> int:
        """Width of the transformer."""
        return self.n_head * self.n_head_state


@attrs.frozen(kw_only=True)
class NoisedClipConfig:
    """Both encoders, as in the released configuration.

    Attributes:
        logit_scale: Factor on similarities; the model stores its logarithm as a constant.
        beta_schedule: Name of the noise schedule that the image encoder was trained on.
        n_timesteps: Number of its timesteps.
    """

    logit_scale: float = attrs.field(validator=gt(0))
    beta_schedule: str = attrs.field(validator=instance_of(str))
    n_timesteps: int = attrs.field(validator=_count)
    image_size: int = attrs.field(validator=_count)
    patch_size: int = attrs.field(validator=[_count, _divides_image])
    n_vocab: int = attrs.field(validator=_count)
    max_text_len: int = attrs.field(validator=_count)
    n_embd: int = attrs.field(validator=_count)
    n_head_state_text: int = attrs.field(validator=_count)
    n_head_text: int = attrs.field(validator=_count)
    n_xf_blocks_text: int = attrs.field(validator=_count)
    n_head_state_image: int = attrs.field(validator=_count)
    n_head_image: int = attrs.field(validator=_count)
    n_xf_blocks_image: int = attrs.field(validator=_count)

    @property
    def image_encoder(self) -> ImageEncoderConfig:
        """Arguments of the image encoder."""
        return ImageEncoderConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            n_embd=self.n_embd,
            n_head=self.n_head_image,
            n_xf_blocks=self.n_xf_blocks_image,
            n_head_state=self.n_head_state_image,
            n_timestep=self.n_timesteps,
        )

    @property
    def text_encoder(self) -> TextEncoderConfig:
        """Arguments of the text encoder."""
        return TextEncoderConfig(
            n_bpe_vocab=self.n_vocab,
            max_text_len=self.max_text_len,
            n_embd=self.n_embd,
            n_head=self.n_head_text,
            n_xf_blocks=self.n_xf_blocks_text,
            n_head_state=self.n_head_state_text,
        )
