"""What the values in an experiment's file may be: converters and validators of its records."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import attrs
from attrs.validators import and_, ge, instance_of

__all__ = ["hyphenated", "intervals", "number", "scales", "text", "text_or_texts", "texts", "whole"]

_NAME = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")

text = instance_of(str)
whole = and_(instance_of(int), ge(1))


def number(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: For anything else, as do the others.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"wants finite numbers, not {value!r}")
    return float(value)


def scales(value: Any) -> tuple[float | Literal["auto"], ...]:
    """Finite numbers, and "auto"."""
    return tuple("auto" if item == "auto" else number(item) for item in value)


def intervals(value: Any) -> tuple[tuple[float, float], ...]:
    """Pairs [lo, hi] between 0 and 1."""
    pairs = tuple(tuple(number(item) for item in pair) for pair in value)
    for pair in pairs:
        if len(pair) != 2 or not 0.0 <= pair[0] < pair[1] <= 1.0:
            raise ValueError(f"wants [lo, hi] between 0 and 1, not {list(pair)}")
    return tuple((low, high) for low, high in pairs)


def texts(value: Any) -> tuple[str, ...]:
    """A list of words."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"wants a list of words, not {value!r}")
    return tuple(value)


def text_or_texts(value: Any) -> tuple[str, ...]:
    """One word, or a list of them."""
    return (value,) if isinstance(value, str) else texts(value)


def hyphenated(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    """Validate what goes into file names."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name!r} must be lower-case words joined by hyphens")
