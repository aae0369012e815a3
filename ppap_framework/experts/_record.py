"""Records read from JSON that anybody may have written: all that is wrong with one is told at
once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs

__all__ = [
    "Validator",
    "count",
    "digest",
    "floats",
    "integers",
    "json_object",
    "must_be",
    "numbers",
    "read_record",
    "record",
    "text",
]

_R = TypeVar("_R")
Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def read_record(cls: type[_R], given: object) -> _R:
    """A record from a JSON object that has each of its fields and no other.

    Raises:
        ValueError: With everything that is wrong, in one line.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r:.40} is no object")
    fields = {field.name: field for field in attrs.fields(cls)}  # type: ignore[arg-type]  # it is an attrs class
    faults = [f"{name!r:.40} is unknown" for name in given if name not in fields]
    for name, field in fields.items():
        if name not in given:
            faults.append(f"{name} is missing")
            continue
        try:
            value = field.converter(given[name]) if field.converter else given[name]
            if field.validator:
                field.validator(None, field, value)
        except (TypeError, ValueError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return cls(**given)


def record(cls: type[_R], given: Any) -> _R:
    """A record as it is, or from a JSON object; for converters."""
    return given if isinstance(given, cls) else read_record(cls, given)


def floats(values: Iterable[float]) -> tuple[float, ...]:
    """A converter; validators come after it."""
    return tuple(values)


def integers(values: Iterable[int]) -> tuple[int, ...]:
    """A converter; validators come after it."""
    return tuple(values)


def must_be(what: str, test: Callable[[Any], bool]) -> Validator:
    """A validator that accepts what passes a test.

    Args:
        what: It wants, in words.
        test: True where it is that.
    """

    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not test(value):
            raise ValueError(f"it must be {what}, not {value!r:.60}")

    return validate


def _is_json_object(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


text = must_be("a text", lambda value: isinstance(value, str) and value != "")
digest = must_be(
    "64 hexadecimal digits",
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
)
count = must_be("a whole number from 0", lambda value: type(value) is int and value >= 0)
numbers = must_be("a list of finite numbers", lambda value: all(map(_is_number, value)))
json_object = must_be("an object of finite JSON", _is_json_object)
