"""Values of options as the types that an options class declares, wherever they come from.

A text, as typed or from a file, and a value from Python are converted and checked alike.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from numbers import Integral, Real
from pathlib import Path, PurePath
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union

import attrs

from ppap_framework.errors import PpapError, did_you_mean
from ppap_framework.files import expanded

_WORDS = {"none": None, "true": True, "false": False}
_LAST = {NoneType: 0, float: 2, str: 3}
"""Order in which the types of a union are tried; 1 for others."""

_SERIES = ("builtins", "collections.abc")
"""Modules of the series whose items are converted."""

_CALLED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def fields_of(cls: type[attrs.AttrsInstance] | None) -> dict[str, attrs.Attribute[Any]]:
    """The fields of an options class by the names of their options."""
    every = () if cls is None else attrs.fields(cls)
    return {field.alias or field.name: field for field in every if field.init}


def read_options(
    cls: type[attrs.AttrsInstance] | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Options with their values converted, and all that is wrong."""
    values, problems, known = dict(given), [], fields_of(cls)
    for name in given:
        if name not in known:
            question = did_you_mean(name, known)
            problems.append(f"unknown option {name!r}" + (question and f" ({question})"))
    for name, field in known.items():
        if name in given:
            try:
                values[name] = _converted(cls, field, given[name])
            except (TypeError, ValueError, PpapError) as error:
                problems.append(f"option {name!r}: {message_of(error)}")
        elif field.default is attrs.NOTHING:
            problems.append(f"option {name!r} is required")
    return values, problems


def message_of(error: Exception) -> str:
    """The message alone, without the field, type and value that attrs' validators add."""
    return " ".join(str(error.args[0] if error.args else error).split())


def _converted(cls: Any, field: attrs.Attribute[Any], value: Any) -> Any:
    """A value for a field, after its own converter and validator found nothing wrong."""
    declared, nan = _declared(cls, field), bool(field.metadata.get("nan"))
    try:
        value = as_declared(declared, value, nan)
    except ValueError:
        if field.converter is None:  # else it may take more than it makes
            raise
    own = attrs.field(validator=field.validator, converter=field.converter)
    try:
        alone = attrs.make_class("Alone", {field.name: own})(value)
    except (TypeError, ValueError, PpapError):
        raise
    except (Exception, SystemExit):  # it reads other fields; making the class reports it
        return value
    as_declared(declared, getattr(alone, field.name), nan)
    return value


def _declared(cls: Any, field: attrs.Attribute[Any]) -> Any:
    """A field's type; Any if it names what only type checkers import."""
    alone: Any = SimpleNamespace(__annotations__={field.name: field.type})
    for of, names in ((cls, None), (alone, vars(sys.modules[cls.__module__]))):
        with contextlib.suppress(NameError, AttributeError):
            return typing.get_type_hints(of, names)[field.name]
    return Any


def as_declared(declared: Any, value: Any, nan: bool = False) -> Any:
    """A value, or a text that stands for one, as a type; ValueError if it is none.

    Items of a series are separated by commas in a text. Without `nan`, NaN is no float.
    """
    declared = getattr(declared, "__supertype__", declared)  # of a NewType
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    text, kind = isinstance(value, str), origin or declared
    if origin in (Union, UnionType):
        for part in sorted(parts, key=lambda part: _LAST.get(part, 1)):
            with contextlib.suppress(ValueError):
                return as_declared(part, value, nan)
    elif origin is Literal:
        for part in parts:
            if (type(value), value) == (type(part), part) or (text and value == str(part)):
                return part
    elif kind in (bool, NoneType):
        found = _WORDS.get(value.lower(), value) if text else value
        if isinstance(found, kind):
            return found
    elif kind in (int, float):
        number: Any = str | (Integral if kind is int else Real)
        if isinstance(value, number) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                if nan or not math.isnan(kind(value)):
                    return kind(value)
    elif kind is Any or not isinstance(kind, type):
        return value
    elif issubclass(kind, Enum):
        for item in kind:
            if value in (item, item.name, item.value, str(item.value)):
                return item
    elif kind in (Path, PurePath, os.PathLike) and isinstance(value, str | os.PathLike):
        return expanded(value)
    elif kind in (str, bytes) or kind.__module__ not in _SERIES or not issubclass(kind, Iterable):
        value = os.fspath(value) if kind is str and isinstance(value, os.PathLike) else value
        if getattr(kind, "_is_protocol", False) or isinstance(value, kind):
            return value
    elif issubclass(kind, Mapping) and isinstance(value, Mapping):
        key, item = parts or (Any, Any)
        return {as_declared(key, k, nan): as_declared(item, v, nan) for k, v in value.items()}
    elif isinstance(value, Iterable) and not issubclass(kind, Mapping):
        items = [item.strip() for item in str(value).split(",") if value] if text else [*value]
        each = parts[:1] * len(items) or [Any] * len(items)
        if kind is tuple and parts and parts[-1] is not ...:
            each = parts
        if len(each) == len(items):
            made = [as_declared(*pair, nan) for pair in zip(each, items, strict=True)]
            return kind(made) if kind in (list, set, frozenset) else tuple(made)
    raise ValueError(f"{value!r:.80} is not {_called(declared)}")


def _called(declared: Any) -> str:
    one_of = typing.get_args(declared) if typing.get_origin(declared) is Literal else ()
    if isinstance(declared, type) and issubclass(declared, Enum):
        one_of = tuple(item.name for item in declared)
    if one_of:
        return f"one of {', '.join(map(str, one_of))}"
    return _CALLED.get(declared, f"of type {type_name(declared)}")


def type_name(declared: Any) -> str:
    """A type as its author writes it."""
    if isinstance(declared, type) and not typing.get_args(declared):
        return declared.__name__
    return str(declared).replace("typing.", "")
