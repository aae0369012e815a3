"""Converters and validators of the records in an experiment's file; they raise `ValueError`."""

from __future__ import annotations

import math
import re
from typing import Any

import attrs
from attrs.validators import and_, ge, instance_of, optional

from ppap_framework.guidance import raw_scale

_NAME = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")

text = instance_of(str)
maybe_text = optional(text)
positive = and_(instance_of(int), ge(1))


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"needs finite numbers, not {value!r}")
    return float(value)


def scale(value: Any) -> float | str:
    if isinstance(value, str) and math.isfinite(raw := raw_scale(value) or math.nan):
        return f"raw:{raw:g}"
    if isinstance(value, str) or not (found := number(value)):
        raise ValueError(f'needs scales other than 0, such as 8 or "raw:64", not {value!r}')
    return found


def scales(value: Any) -> tuple[float | str, ...]:
    found = tuple(scale(item) for item in value)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"needs different scales, not {value!r}")
    return found


def interval(value: Any) -> tuple[float, float]:
    pair = tuple(number(item) for item in value)
    if len(pair) != 2 or not 0.0 <= pair[0] < pair[1] <= 1.0:
        raise ValueError(f"needs [lo, hi] between 0 and 1, not {list(pair)}")
    return pair


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"needs a list of words, not {value!r}")
    return tuple(value)


def text_or_texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else texts(value)


def name(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name!r} must be lower-case words joined by hyphens")
