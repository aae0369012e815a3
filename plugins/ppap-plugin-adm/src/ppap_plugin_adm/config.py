"""Constructor arguments of the ADM networks, named as in the released checkpoints.

`TrunkConfig` holds the arguments common to all U-Nets of this design.

`attention_resolutions` are downsampling factors, not pixel sizes: 4 means that the feature map is a
quarter of the image. `channel_mult` may be fractional (0.5 for the 512x512 model). `use_fp16`
and `image_size` record how a checkpoint was released: nothing is cast, and only attention pooling
uses the image size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs
from attrs.validators import and_, deep_iterable, ge, gt, in_, instance_of, min_len, optional, or_

from ppap_framework.plugin import UsageError

NORM_GROUPS = 32

Pool = Literal["adaptive", "attention", "spatial", "spatial_v2"]

_Record = TypeVar("_Record", bound=attrs.AttrsInstance)

_count = and_(instance_of(int), gt(0))
_count_or_default = or_(in_([-1]), _count)  # -1: derived from another argument


@attrs.frozen(kw_only=True)
class TrunkConfig(ABC):
    """Arguments common to all networks of this design.

    Raises:
        TypeError, ValueError: If a value is of the wrong type or out of range.
        UsageError: If a width is not a multiple of the 32 norm groups.
    """

    in_channels: int = attrs.field(validator=_count)
    model_channels: int = attrs.field(validator=_count)
    out_channels: int = attrs.field(validator=_count)
    num_res_blocks: int = attrs.field(validator=_count)
    attention_resolutions: tuple[int, ...] = attrs.field(
        converter=tuple, validator=deep_iterable(_count)
    )
    dropout: float = attrs.field(default=0.0, validator=ge(0))
    channel_mult: tuple[float, ...] = attrs.field(
        default=(1, 2, 4, 8), converter=tuple, validator=[min_len(1), deep_iterable(gt(0))]
    )
    conv_resample: bool = True
    dims: int = attrs.field(default=2, validator=in_([2]))
    use_checkpoint: bool = False
    use_fp16: bool = False
    num_heads: int = attrs.field(default=1, validator=_count)
    num_head_channels: int = attrs.field(default=-1, validator=_count_or_default)
    num_heads_upsample: int = attrs.field(default=-1, validator=_count_or_default)
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False

    @property
    @abstractmethod
    def new_attention_order(self) -> bool:
        """Whether attention packs its projections as [q, k, v][head] instead of [head][q, k, v]."""

    def __attrs_post_init__(self) -> None:
        for width in self.widths:
            if width == 0 or width % NORM_GROUPS:
                raise UsageError(
                    f"a level of {width} channels (model_channels={self.model_channels}, "
                    f"channel_mult={self.channel_mult}) does not divide into norm groups",
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
        """Number of attention heads at a width; `num_head_channels` overrides the counts of heads.

        Raises:
            UsageError: If the channels do not divide into heads.
        """
        if self.num_head_channels != -1:
            heads, rest = divmod(channels, self.num_head_channels)
        else:
            heads = self.num_heads
            if decoder and self.num_heads_upsample != -1:
                heads = self.num_heads_upsample
            rest = channels % heads
        if rest:
            raise UsageError(
                f"{channels} channels do not divide into attention heads "
                f"(num_heads={self.num_heads}, num_heads_upsample={self.num_heads_upsample}, "
                f"num_head_channels={self.num_head_channels})",
                hint="choose a num_head_channels that divides every width with attention",
            )
        return heads


@attrs.frozen(kw_only=True)
class AdmConfig(TrunkConfig):
    """Arguments common to denoiser and classifier."""

    image_size: int = attrs.field(validator=_count)
    use_new_attention_order: bool = False

    @property
    def new_attention_order(self) -> bool:
        """The value of `use_new_attention_order`."""
        return self.use_new_attention_order


@attrs.frozen(kw_only=True)
class UNetConfig(AdmConfig):
    """A denoiser; it is unconditional if `num_classes` is None."""

    num_classes: int | None = attrs.field(default=None, validator=optional(_count))


@attrs.frozen(kw_only=True)
class EncoderConfig(AdmConfig):
    """A classifier; `pool` selects how the feature map is reduced to `out_channels` logits."""

    pool: Pool = attrs.field(default="adaptive", validator=in_(get_args(Pool)))


def read_config(official_class: str, record: type[_Record], config: Mapping[str, Any]) -> _Record:
    """Convert published constructor arguments to a record.

    Args:
        official_class: Published class, for messages.
        record: An attrs class with these arguments as its fields.
        config: The arguments by name.

    Raises:
        UsageError: If an argument is unknown, missing or invalid.
    """
    names = [field.name for field in attrs.fields(record)]
    if unknown := sorted(set(config) - set(names)):
        raise UsageError(
            f"{official_class} has no argument {', '.join(unknown)}",
            hint=f"its arguments are {', '.join(names)}",
        )
    try:
        return record(**config)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{official_class} cannot be built: {error.args[0]}", hint="correct the configuration"
        ) from error
