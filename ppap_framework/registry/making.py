"""Importing a plugin's code and making components; errors name the distribution."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import attrs

from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.plugin import BackendSpec, ComponentSpec, GuiderSpec
from ppap_framework.registry.records import missing_dependency, one_line

_TRACEBACK = "--debug shows the traceback"


def load(reference: str, what: str) -> Any:
    """Import "package.module:attribute" for the component `what`, or raise `PluginError`."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: no plugin may end the host
        if missing := missing_dependency(error, reference):
            raise PluginError(f"{what} {missing[0]}", hint=missing[1]) from error
        fault = f"{what} cannot be imported from {reference}: {one_line(error)}"
        raise PluginError(fault, hint=_TRACEBACK) from error


def options_class(spec: ComponentSpec, what: str) -> type[attrs.AttrsInstance] | None:
    if spec.options is None:
        return None
    cls = load(spec.options, what)
    if not (isinstance(cls, type) and attrs.has(cls)):
        raise PluginError(f"{what} names {spec.options} as its options, which is no attrs class")
    return cls


def build_options(spec: ComponentSpec, given: Mapping[str, Any], what: str) -> Any:
    cls = options_class(spec, what)
    fields = [] if cls is None else [field for field in attrs.fields(cls) if field.init]
    known = {field.alias or field.name: field for field in fields}
    problems = []
    for name in given:
        if name not in known:
            near = [f" (did you mean {n!r}?)" for n in difflib.get_close_matches(name, known, n=1)]
            problems.append(f"unknown option {name!r}{''.join(near)}")
    for name, field in known.items():
        if name in given:
            problems += _complaint(field, given[name])
        elif field.default is attrs.NOTHING:
            problems.append(f"option {name!r} is required")
    if not problems and cls is not None:
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            problems.append(_text(error))
    if problems:
        hint = f"its options are {', '.join(known)}" if known else "it has no options"
        raise UsageError(f"{what}: {'; '.join(problems)}", hint=hint)
    return None


def _complaint(field: attrs.Attribute[Any], value: Any) -> list[str]:
    """Errors of a field's own converter and validator, without the other fields."""
    own = attrs.field(validator=field.validator, converter=field.converter)
    try:
        attrs.make_class("Alone", {field.name: own})(value)
    except (TypeError, ValueError, PpapError) as error:
        return [f"option {field.alias or field.name!r}: {_text(error)}"]
    except Exception:  # it reads other fields; making the class reports it
        pass
    return []


def _text(error: Exception) -> str:
    """The message alone, without the field, type and value that attrs' validators add."""
    return " ".join(str(error.args[0] if error.args else error).split())


def make(spec: ComponentSpec, options: Mapping[str, Any], checkpoint: Any, what: str) -> Any:
    """See `Registry.make`."""
    built = build_options(spec, options, what)
    takes = isinstance(spec, BackendSpec | GuiderSpec)
    needed = spec.needs_checkpoint if isinstance(spec, GuiderSpec) else takes
    if needed and checkpoint is None:
        hint = "`ppap plugins info` shows its checkpoints"
        raise AssetError(f"{what} needs a checkpoint", hint=hint)
    given = (built, checkpoint) if takes else (built,)
    factory = load(spec.factory, what)
    try:
        made = factory(*given)
    except PpapError:
        raise
    except Exception as error:
        raise PluginError(f"{what} failed: {one_line(error)}", hint=_TRACEBACK) from error
    components = importlib.import_module("ppap_framework.components")  # imports torch: only now
    fault = f"{what} made a {type(made).__name__}"
    if not isinstance(made, getattr(components, spec.makes)):
        raise PluginError(f"{fault}, which is no {spec.makes}")
    owed = {"backend": "stages", "guider": "network"}.get(spec.kind)
    if owed and not hasattr(made, owed):
        raise PluginError(f"{fault} that has no `{owed}`")
    return made
