"""Records read from untrusted JSON. One error names all faults."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import attrs

from ppap_framework.errors import must_be

_R = TypeVar("_R")


def read_record(cls: type[_R], given: object) -> _R:
    """A record of a JSON object, where None defaults may be absent; ValueError has all faults."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r:.40} is no object")
    fields = {field.name: field for field in attrs.fields(cls)}  # type: ignore[arg-type]  # it is an attrs class
    hints, values = get_type_hints(cls), {}
    faults = [f"{name!r:.40} is unknown" for name in given if name not in fields]
    for name, field in fields.items():
        if name not in given:
            if field.default is not None:
                faults.append(f"{name} is missing")
            continue
        try:
            values[name] = value = _nested(hints[name], given[name])
            value = field.converter(value) if field.converter else value
            if field.validator:
                field.validator(None, field, value)
        except (ArithmeticError, TypeError, ValueError) as error:
            said = str(error)
            faults.append(said if said.startswith(name) else f"{name}: {said}")
    if faults:
        raise ValueError("; ".join(faults))
    return cls(**values)


def _nested(hint: Any, given: Any) -> Any:
    kinds = (hint, *get_args(hint))
    record = next((kind for kind in kinds if attrs.has(kind)), None)
    if record is None or (given is None and type(None) in kinds):
        return given
    if ... in kinds:
        return [read_record(record, one) for one in given]
    return read_record(record, given)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return False


rgb = must_be("'rgb'", lambda value: value == "rgb")
text = must_be("a text", lambda value: isinstance(value, str) and value != "")
digest = must_be("64 hexadecimal digits", lambda value: re.fullmatch("[0-9a-f]{64}", value))
whole = must_be("a whole number", lambda value: type(value) is int)
count = must_be("a whole number from 0", _is_count)
counts = must_be("a list of whole numbers from 0", lambda value: all(map(_is_count, value)))
size = must_be("two whole numbers from 0", lambda two: len(two) == 2 and all(map(_is_count, two)))
numbers = must_be(
    "a list of finite numbers",
    lambda value: all(type(x) in (int, float) and math.isfinite(x) for x in value),
)
json_object = must_be("an object of finite JSON", _is_json_object)
