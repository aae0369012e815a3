"""Converters and validators of the records in an experiment's file."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import attrs
from attrs.validators import and_, ge, instance_of, optional

__all__ = [
    "intervals",
    "maybe_text",
    "name",
    "number",
    "positive",
    "scales",
    "text",
    "text_or_texts",
    "texts",
]

_NAME = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")

text = instance_of(str)
maybe_text = optional(text)
positive = and_(instance_of(int), ge(1))


def number(value: Any) -> float:
    """Convert to a finite number.

    Raises:
        ValueError: For anything else, like all converters here.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"needs finite numbers, not {value!r}")
    return float(value)


def scales(value: Any) -> tuple[float | Literal["auto"], ...]:
    """Convert to finite numbers and "auto"."""
    return tuple("auto" if item == "auto" else number(item) for item in value)


def intervals(value: Any) -> tuple[tuple[float, float], ...]:
    """Convert to pairs (lo, hi) with 0 <= lo < hi <= 1."""
    pairs = [tuple(number(item) for item in pair) for pair in value]
    for pair in pairs:
        if len(pair) != 2 or not 0.0 <= pair[0] < pair[1] <= 1.0:
            raise ValueError(f"needs [lo, hi] between 0 and 1, not {list(pair)}")
    return tuple((low, high) for low, high in pairs)


def texts(value: Any) -> tuple[str, ...]:
    """Convert a list of strings."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"needs a list of words, not {value!r}")
    return tuple(value)


def text_or_texts(value: Any) -> tuple[str, ...]:
    """Convert one string or a list of strings."""
    return (value,) if isinstance(value, str) else texts(value)


def name(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    """Validate a part of a file's name."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name!r} must be lower-case words joined by hyphens")
