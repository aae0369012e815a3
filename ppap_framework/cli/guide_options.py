"""Guides on a command line: `--guider NAME[=SCALE][:LO-HI]`, and options with `guide=value`.

    --guider depth=2 --guider classifier=4:0.2-0.9 --target depth=ref.png --target classifier=cube

SCALE is a number, which multiplies the calibrated curve of the guide's experts if they have one,
`raw:NUMBER`, which does not, or `auto` for the default. LO and HI are t / T; 1 is pure noise. A
value without a guide's name is for the only guide.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union

import click

from ppap_framework.cli.config import scale_text
from ppap_framework.errors import Problems, UsageError
from ppap_framework.registry import registry
from ppap_framework.run import GuideRequest

_FORM = "NAME, NAME=SCALE, NAME:LO-HI or NAME=SCALE:LO-HI, such as classifier=4:0.2-0.9"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GUIDER = re.compile(
    r"(?P<name>[^=]*?)(?:=(?P<scale>(?:\s*raw:)?[^:]*))?"
    r"(?::(?P<interval>|(?:[\d.]|[+-](?=[\d.]))[\d.eE+-]*))?"
)
_INTERVAL = re.compile(rf"({_NUMBER})-({_NUMBER})")
_COMPONENT = re.compile(r"(?:[\w.-]+:)?[a-z0-9]+(?:-[a-z0-9]+)*")

_FIELDS = {
    "target": "target",
    "guider_model": "model",
    "guider_checkpoint": "checkpoint",
    "loss": "loss",
    "experts": "experts",
    "guider_option": "options",
    "loss_option": "loss_options",
}
"""The fields of `GuideRequest` for options with `guide=value` or `guide.key=value`."""


def parse_guides(
    given: Mapping[str, Any], problems: Problems, *, offline: bool = False
) -> list[GuideRequest]:
    """The guides of a command line that could be read.

    Args:
        given: Values of options by parameter name: `guider`, and if the command has them `scale`,
            `allow_mismatch`, and those of `_FIELDS`. An option that is given once may be a text.
        problems: Collects what cannot be read.
        offline: Raise instead of downloading.
    """
    wanted = [text.strip() for text in _several(given["guider"])]
    if "none" in wanted and len(wanted) > 1:
        problems.errors.append(
            UsageError("--guider none goes with no other guider", hint="leave out one or the other")
        )
    wanted = [] if "none" in wanted else wanted
    guides: list[dict[str, Any]] = []
    for text in wanted:
        with problems.collected():
            guide = _guide(text)
            if _name(guide) in map(_name, guides):
                raise UsageError(
                    f"--guider {_name(guide)} is given twice",
                    hint="give each guide once, with one scale and interval",
                )
            guides.append(guide)
    misplaced = Problems()
    for parameter in _FIELDS:
        for text in _several(given.get(parameter)):
            with misplaced.collected():
                _assign(parameter, text, guides)
    if len(guides) == len(wanted):  # else they may be for the guide that could not be read
        problems.errors += misplaced.errors
    requests = []
    for guide in guides:
        with problems.collected():
            requests.append(_request(guide, given, offline))
    return requests


def guide_of(given: Mapping[str, Any]) -> GuideRequest:
    """The network of a command that has one and does not guide with it, checked.

    Raises:
        PpapError: If it cannot be used.
    """
    if given["guider"] == "none":
        raise UsageError("--guider none names no network", hint="name one with --guider")
    problems = Problems()
    requests = parse_guides(given, problems)
    problems.check()
    [request] = requests
    if request.scale is not None or request.interval != (0.0, 1.0):
        raise UsageError(
            f"--guider {request.label} takes no scale and no interval here",
            hint="they are for `ppap run`; give the name alone",
        )
    request.check()
    return request


def typed_option(
    component: str,
    key: str,
    text: str,
    kind: Literal["backend", "guider", "loss", "adapter"] = "guider",
) -> Any:
    """The value of a component's option, converted to the type in its options class.

    Raises:
        PluginError: If there is no such component, or its options cannot be imported.
        UsageError: If the text is no value of that type.
    """
    plugins = registry()
    options = plugins.options_class(plugins.spec(kind, component))
    try:
        declared = typing.get_type_hints(options).get(key, str) if options else str
    except NameError:  # it names a type that only type checkers import
        return text
    union = typing.get_origin(declared) in (Union, UnionType)
    kinds = typing.get_args(declared) if union else (declared,)
    words = {"none": (type(None), None), "true": (bool, True), "false": (bool, False)}
    of, value = words.get(text.lower(), (None, None))
    if of in kinds:
        return value
    for number in (int, float):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(text)
    if str not in kinds and {bool, int, float} & set(kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise UsageError(
            f"option {key!r} of {kind} {component!r} cannot be {text!r}", hint=f"give a {wanted}"
        )
    return text


def typed_pairs(flag: str, texts: Sequence[str], component: str, kind: Any) -> dict[str, Any]:
    """A component's options, KEY=VALUE each.

    Raises:
        UsageError: If a text cannot be read, or a key is given twice.
        PpapError: As `typed_option`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"{flag} {text!r} cannot be read", hint="type KEY=VALUE")
        if key in found:
            raise UsageError(f"{flag} {key} is given twice", hint="give each key once")
        found[key] = typed_option(component, key, value.strip(), kind)
    return found


def _several(value: str | Sequence[str] | None) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else value


def _name(guide: Mapping[str, Any]) -> str:
    return str(guide["source"]).rpartition(":")[2]


def _guide(text: str) -> dict[str, Any]:
    match = _GUIDER.fullmatch(text)
    if match is None or not _COMPONENT.fullmatch(match["name"]):
        known = {spec.name for spec in registry().specs("guider")}
        name = "" if match is None else match["name"].lower().replace("_", "-")
        near = difflib.get_close_matches(name, known, n=1) if _COMPONENT.fullmatch(name) else []
        raise UsageError(
            f"--guider {text!r} cannot be read",
            hint=f"did you mean {near[0]!r}?" if near else f"type {_FORM}",
        )
    guide: dict[str, Any] = {"source": match["name"], "options": [], "loss_options": []}
    if match["scale"] is not None:
        try:
            guide["scale"] = scale_text(match["scale"])
        except click.BadParameter:
            raise UsageError(
                f"the scale {match['scale']!r} in --guider {text!r} is no number",
                hint=f"type {_FORM}, or raw:NUMBER or auto for SCALE",
            ) from None
    if match["interval"] is not None:
        ends = _INTERVAL.fullmatch(match["interval"])
        if ends is None:
            raise UsageError(
                f"the interval {match['interval']!r} in --guider {text!r} cannot be read",
                hint="an interval is LO-HI, between 0 (image) and 1 (noise), such as 0.2-0.9",
            )
        guide["interval"] = float(ends[1]), float(ends[2])
    return guide


def _assign(parameter: str, text: str, guides: Sequence[dict[str, Any]]) -> None:
    """Give the value of an option to the guide that it names."""
    flag, field = f"--{parameter.replace('_', '-')}", _FIELDS[parameter]
    of_guider = field.endswith("options")
    before, equals, after = text.partition("=")
    if of_guider:
        name, dot, key = before.rpartition(".")
        named, value = bool(dot), f"{key}{equals}{after}"
    else:
        name = before.strip()
        named = bool(equals and (_COMPONENT.fullmatch(name) or name in map(_name, guides)))
        value = after.strip() if named else text.strip()
    names = list(map(_name, guides))
    if not guides:
        raise UsageError(f"{flag} {text!r} is for a guide, and there is none", hint="add --guider")
    if not named and len(guides) > 1:
        forms = [f"{flag} {shlex.quote(f'{name}={text}')}" for name in names]
        raise UsageError(
            f"{flag} {text!r} does not say for which guide it is",
            hint="type GUIDE.KEY=VALUE" if of_guider else " or ".join(forms),
        )
    matching = [g for g in guides if not named or name in (_name(g), g["source"])]
    if not matching:
        near = difflib.get_close_matches(name, names, n=1) or names[:1]
        bare = f"the guides are {', '.join(names)}; for text with a '=' type {near[0]}={text}"
        raise UsageError(
            f"{flag} {text!r} is for guide {name!r}, which is not used",
            hint="type GUIDE.KEY=VALUE" if of_guider else bare,
        )
    [guide] = matching
    if of_guider:
        guide[field].append(value)
    elif field in guide:
        raise UsageError(
            f"{flag} is given twice for guide {_name(guide)!r}", hint="give it once for each guide"
        )
    else:
        guide[field] = value


def _request(guide: dict[str, Any], given: Mapping[str, Any], offline: bool) -> GuideRequest:
    source, texts = guide["source"], guide["loss_options"]
    loss = guide.get("loss") or (texts and registry().spec("guider", source).default_loss)
    fields: dict[str, Any] = {"scale": given.get("scale")} | guide
    fields["options"] = typed_pairs("--guider-option", guide["options"], source, "guider")
    fields["loss_options"] = typed_pairs("--loss-option", texts, loss, "loss")
    return GuideRequest(**fields, allow_mismatch=given.get("allow_mismatch", ()), offline=offline)
