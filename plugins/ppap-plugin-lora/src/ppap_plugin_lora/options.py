"""Options of the adapter `lora`; this module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import attrs
from attrs.validators import and_, deep_iterable, ge, in_, instance_of, min_len


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"must be a positive number, not {value}")


def _patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    """Split a comma-separated string."""
    words = given.split(",") if isinstance(given, str) else given
    return tuple(word.strip() if isinstance(word, str) else word for word in words)


@attrs.frozen(kw_only=True)
class LoraOptions:
    """Options of the adapter `lora`.

    Attributes:
        rank: Rank r of each change.
        alpha: Scale of changes; they are multiplied by alpha / rank.
        targets: Glob patterns of the layers to adapt, such as "layer*.conv1" or "blocks.*.attn.*";
            * matches anything, dots included. By default, every layer for which a change of this
            rank has at most half of the layer's parameters.
        variant: "plain" is LoRA; "reshaped" is the variant of the released PPAP experts.
        seed: Seed of the initial values.
    """

    rank: int = attrs.field(default=16, validator=and_(instance_of(int), ge(1)))
    alpha: float = attrs.field(default=8.0, converter=float, validator=_positive)
    targets: tuple[str, ...] = attrs.field(
        default=(), converter=_patterns, validator=deep_iterable(and_(instance_of(str), min_len(1)))
    )
    variant: Literal["plain", "reshaped"] = attrs.field(
        default="plain", validator=in_(("plain", "reshaped"))
    )
    seed: int = attrs.field(default=0, validator=and_(instance_of(int), ge(0)))
