"""Constructor arguments of the ADM networks, under the names that the released checkpoints use.

`attention_resolutions` are downsampling factors, not pixel sizes: 4 means "where the feature map is a quarter of the
image". `channel_mult` may be fractional (0.5 for the 512x512 model).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import attrs

from ppap_framework.errors import PpapError

NORM_GROUPS = 32

Pool = Literal["adaptive", "attention", "spatial", "spatial_v2"]


def _tuple(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)


@attrs.frozen(kw_only=True)
class TrunkConfig:
    """What the denoiser and the classifier have in common.

    Raises:
        PpapError: if a width is not divisible by the 32 norm groups or by its heads, or `dims` is not 2.
    """

    image_size: int
    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[float, ...] = attrs.field(converter=_tuple)
    dropout: float = 0.0
    channel_mult: tuple[float, ...] = attrs.field(default=(1, 2, 4, 8), converter=_tuple)
    conv_resample: bool = True
    dims: int = 2
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    def __attrs_post_init__(self) -> None:
        if self.dims != 2:
            raise PpapError(f"dims={self.dims}: only images are supported", hint="pass dims=2")
        if not self.channel_mult:
            raise PpapError("channel_mult is empty", hint="give one multiplier a level, as in (1, 2, 4)")
        for width in self.widths:
            if width <= 0 or width % NORM_GROUPS:
                raise PpapError(
                    f"a level of width {width} (model_channels={self.model_channels}, "
                    f"channel_mult={self.channel_mult}) does not divide into {NORM_GROUPS} norm groups",
                    hint=f"choose widths that are multiples of {NORM_GROUPS}",
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def embedding_width(self) -> int:
        """Channels of the time embedding; follows `model_channels`, not the first level's width."""
        return 4 * self.model_channels

    def heads(self, channels: int, *, decoder: bool = False) -> int:
        """Number of attention heads at a width; `num_head_channels` overrides the counts of heads."""
        if self.num_head_channels != -1:
            heads, rest = divmod(channels, self.num_head_channels)
        else:
            upsample = decoder and self.num_heads_upsample != -1
            heads = self.num_heads_upsample if upsample else self.num_heads
            rest = channels % heads
        if rest:
            raise PpapError(
                f"{channels} channels do not divide into attention heads (num_heads={self.num_heads}, "
                f"num_head_channels={self.num_head_channels})",
                hint="choose a num_head_channels that divides every width with attention",
            )
        return heads


@attrs.frozen(kw_only=True)
class UNetConfig(TrunkConfig):
    """A denoiser; `num_classes` None is the unconditional one."""

    num_classes: int | None = None


@attrs.frozen(kw_only=True)
class EncoderConfig(TrunkConfig):
    """A classifier; `pool` says how the feature map becomes a vector of `out_channels` logits."""

    pool: Pool = "adaptive"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pool not in get_args(Pool):
            raise PpapError(f"pool={self.pool!r} is unknown", hint=f"one of {', '.join(get_args(Pool))}")
        if self.pool == "attention" and self.num_head_channels == -1:
            raise PpapError("attention pooling needs num_head_channels", hint="the released ones use 64")
