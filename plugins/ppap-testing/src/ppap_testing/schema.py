"""The JSON schema of `ppap.toml`, for editors, made from options and installed components.

It is stricter than the commands where a boolean or a number may be given as text, and lets pass
what depends on several options, such as the key of an option of another guider than the chosen one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import click

from ppap_framework.cli.config import NumberOrAuto, Option, configured
from ppap_framework.errors import PluginError
from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import registry
from ppap_framework.registry.options import fields_of

_KINDS: tuple[ComponentKind, ...] = ("backend", "guider", "loss", "adapter")
_JSON = {"integer": "integer", "integer range": "integer", "float": "number", "boolean": "boolean"}
"""Types of JSON by those of click."""


def schema_of() -> dict[str, Any]:
    """The schema (draft 7) of a file with a table for each command that reads it."""
    tables = _object({name: _table(command) for name, command in configured().items()})
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "ppap.toml", **tables}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _table(command: click.Command) -> dict[str, Any]:
    own = [option for option in command.params if isinstance(option, Option)]
    rules = {flag[2:]: _rule(option) for option in own for flag in option.opts}
    # Editors offer properties; with underscores, the names are accepted, too.
    written = {f"^{name.replace('-', '_')}$": rules[name] for name in rules if "-" in name}
    return {**_object(rules), "patternProperties": written}


def _rule(option: Option) -> dict[str, Any]:
    one, default = _value(option), option.default
    rule: dict[str, Any] = {"description": option.help}
    if isinstance(default, int | float | str):
        rule["default"] = default
    series = {"type": "array", "items": one}
    if option.nargs != 1:
        return {**rule, **series, "minItems": option.nargs, "maxItems": option.nargs}
    return {**rule, **({"anyOf": [one, series]} if option.multiple else one)}


def _value(option: Option) -> dict[str, Any]:
    """What one value of an option may be."""
    kind, name = option.type, option.name or ""
    if isinstance(kind, click.Choice):
        return {"enum": [*kind.choices]}
    if isinstance(kind, NumberOrAuto):
        words = _text("(auto|raw:.*)$" if kind.raw else "auto$")
        return {"anyOf": [{"type": "number" if kind.raw else "integer"}, words]}
    if kind.name in _JSON:
        least = {"minimum": kind.min} if isinstance(kind, click.IntRange) else {}
        return {"type": _JSON[kind.name], **least}
    for component in _KINDS:
        if name == component:
            return _component(component, of_run=option.multiple)
        if name == f"{component}_option":
            return _pair(component, of_run=option.metavar != "KEY=VALUE")
    return {"type": ["string", "number"]}


def _component(kind: ComponentKind, *, of_run: bool) -> dict[str, Any]:
    """A name, which editors offer, or what else names a component."""
    names = sorted({spec.name for spec in registry().specs(kind)})
    pattern = rf"([\w.-]+:)?({'|'.join(names)})"
    if kind == "loss" and of_run:
        pattern = rf"([\w.:-]+=)?{pattern}"  # GUIDE=LOSS
    elif kind == "guider" and of_run:
        names, pattern = [*names, "none"], rf"{pattern}([=:].*)?"  # NAME=SCALE:LO-HI
    elif kind == "adapter":
        pattern = rf"{pattern}(:.*)?"  # NAME:KEY=VALUE
    return {"anyOf": [{"enum": names}, _text(f"{pattern}$")]}


def _pair(kind: ComponentKind, *, of_run: bool) -> dict[str, Any]:
    """KEY=VALUE with an option of any component of a kind, in `ppap run` with a guide's name."""
    keys: set[str] = set()
    for spec in registry().specs(kind):
        with contextlib.suppress(PluginError):  # its options are unknown
            keys |= fields_of(registry().options_class(spec)).keys()
    known = "|".join(sorted(key.replace("_", "[-_]") for key in keys))
    guide = r"([\w.:-]+\.)?" if of_run else ""
    return _text(rf"{guide}\s*({known})\s*=")


def _text(pattern: str) -> dict[str, str]:
    return {"type": "string", "pattern": f"^{pattern}"}
