"""Guides on a command line: `--guider NAME[=SCALE][:LO-HI]`, and options with `guide=value`.

    --guider depth=2 --guider classifier=4:0.2-0.9 --target depth=ref.png --target classifier=cube

SCALE is a number, or `auto` for what its experts were calibrated with. LO and HI are t / T, where 1
is noise. A value without a guide's name is for the only guide.
"""

from __future__ import annotations

import difflib
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union

import attrs

from ppap_framework.errors import UsageError
from ppap_framework.registry import registry
from ppap_framework.run import Problems

__all__ = ["GuideRequest", "parse_guides", "read_scale", "typed_option", "typed_pairs"]

_FORM = "NAME, NAME=SCALE, NAME:LO-HI or NAME=SCALE:LO-HI, such as classifier=4:0.2-0.9"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GUIDER = re.compile(
    r"(?P<name>[^=]*?)(?:=(?P<scale>[^:]*))?(?::(?P<interval>|(?:[\d.]|[+-](?=[\d.]))[\d.eE+-]*))?"
)
_INTERVAL = re.compile(rf"({_NUMBER})-({_NUMBER})")
_COMPONENT = re.compile(r"(?:[\w.-]+:)?[a-z0-9]+(?:-[a-z0-9]+)*")
_KEY = re.compile(r"(?:(?P<guide>[^=]*)\.)?(?P<key>[^=.]+)=(?P<value>.*)", re.DOTALL)


@attrs.define
class GuideRequest:
    """What was typed about one guide; what was not is None.

    Attributes:
        guider: The guider's name, perhaps "distribution:name".
        scale: How hard it shall pull; "auto" for as its experts were calibrated.
        interval: (lo, hi), where it shall act.
        target: What it shall see.
        model: Which network.
        checkpoint: Of that network.
        loss: What it shall descend.
        experts: What shall look at noisy images in its place.
        options: The guider's own options.
    """

    guider: str
    scale: float | Literal["auto"] | None = None
    interval: tuple[float, float] | None = None
    target: str | None = None
    model: str | None = None
    checkpoint: str | None = None
    loss: str | None = None
    experts: str | None = None
    options: dict[str, Any] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """How the guide is called: the guider's name without its distribution."""
        return self.guider.rpartition(":")[2]


def parse_guides(
    guiders: Sequence[str],
    values: Mapping[str, Sequence[str]],
    options: Sequence[str],
    problems: Problems,
) -> list[GuideRequest]:
    """Read everything that was typed about guides.

    Args:
        guiders: The values of `--guider`.
        values: Those of `--target`, `--guider-model`, ... by the attribute of `GuideRequest`.
        options: Those of `--guider-option`.
        problems: Takes what is wrong.

    Returns:
        The guides that could be read.
    """
    wanted = [text.strip() for text in guiders]
    if "none" in wanted:
        if len(wanted) > 1:
            problems.errors.append(
                UsageError(
                    "--guider none goes with no other guider", hint="leave out one or the other"
                )
            )
        wanted = []
    guides: list[GuideRequest] = []
    for text in wanted:
        with problems.collected():
            guide = _guide(text)
            if any(guide.name == other.name for other in guides):
                raise UsageError(
                    f"--guider {guide.name} is given twice",
                    hint="give each guide once, with one scale and interval",
                )
            guides.append(guide)
    misplaced = Problems()
    for attribute, texts in values.items():
        for text in texts:
            with misplaced.collected():
                _set_value(attribute, text, guides)
    for text in options:
        with misplaced.collected():
            _set_option(text, guides)
    if len(guides) == len(wanted):  # else they may be for the guide that could not be read
        problems.errors += misplaced.errors
    return guides


def _guide(text: str) -> GuideRequest:
    match = _GUIDER.fullmatch(text)
    if match is None or not _COMPONENT.fullmatch(match["name"]):
        known = {spec.name for spec in registry().specs("guider")}
        name = "" if match is None else match["name"].lower().replace("_", "-")
        near = difflib.get_close_matches(name, known, n=1) if _COMPONENT.fullmatch(name) else []
        raise UsageError(
            f"--guider {text!r} cannot be read",
            hint=f"did you mean {near[0]!r}?" if near else f"type {_FORM}",
        )
    scale = interval = None
    if match["scale"] is not None:
        try:
            scale = read_scale(match["scale"])
        except ValueError:
            raise UsageError(
                f"the scale {match['scale']!r} in --guider {text!r} is no number",
                hint=f"type {_FORM}, or auto for SCALE",
            ) from None
    if match["interval"] is not None:
        ends = _INTERVAL.fullmatch(match["interval"])
        if ends is None:
            raise UsageError(
                f"the interval {match['interval']!r} in --guider {text!r} is none",
                hint="an interval is LO-HI, between 0 (image) and 1 (noise), such as 0.2-0.9",
            )
        interval = float(ends[1]), float(ends[2])
    return GuideRequest(match["name"], scale, interval)


def read_scale(text: str) -> float | Literal["auto"]:
    """A scale as typed.

    Raises:
        ValueError: Where it is neither a number nor "auto".
    """
    return "auto" if text.strip() == "auto" else float(text)


def _set_value(attribute: str, text: str, guides: Sequence[GuideRequest]) -> None:
    flag = f"--guider-{attribute}" if attribute in ("model", "checkpoint") else f"--{attribute}"
    guide, value = _assigned(flag, text, guides)
    if getattr(guide, attribute) is not None:
        raise UsageError(
            f"{flag} is given twice for guide {guide.name!r}", hint="give it once for each guide"
        )
    setattr(guide, attribute, value)


def _assigned(flag: str, text: str, guides: Sequence[GuideRequest]) -> tuple[GuideRequest, str]:
    """The guide that a value is for, and the value."""
    if not guides:
        raise UsageError(f"{flag} {text!r} is for a guide, and there is none", hint="add --guider")
    prefix, equals, rest = text.partition("=")
    named = prefix.strip()
    for guide in guides:
        if equals and named in (guide.name, guide.guider):
            return guide, rest.strip()
    names = [guide.name for guide in guides]
    if equals and _COMPONENT.fullmatch(named):
        near = difflib.get_close_matches(named, names, n=1) or names[:1]
        raise UsageError(
            f"{flag} {text!r} is for guide {named!r}, which is not used",
            hint=f"the guides are {', '.join(names)}; for text with a '=' type {near[0]}={text}",
        )
    if len(guides) > 1:
        raise UsageError(
            f"{flag} {text!r} does not say for which guide it is",
            hint=" or ".join(f"{flag} {shlex.quote(f'{name}={text}')}" for name in names),
        )
    return guides[0], text.strip()


def _set_option(text: str, guides: Sequence[GuideRequest]) -> None:
    flag = "--guider-option"
    match = _KEY.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{flag} {text!r} cannot be read", hint="type KEY=VALUE or GUIDE.KEY=VALUE"
        )
    prefix = f"{match['guide']}=" if match["guide"] is not None else ""
    try:
        guide, _ = _assigned(flag, f"{prefix}{match['key']}", guides)
    except UsageError as error:
        raise UsageError(error.message, hint="type GUIDE.KEY=VALUE") from error
    key = match["key"].strip().replace("-", "_")
    if key in guide.options:
        raise UsageError(
            f"{flag} {key} is given twice for guide {guide.name!r}", hint="give each key once"
        )
    guide.options[key] = match["value"].strip()


def typed_option(
    component: str,
    key: str,
    text: str,
    kind: Literal["backend", "guider", "loss", "adapter"] = "guider",
) -> Any:
    """The value of a component's option, read as the type that its options class declares for it.

    Raises:
        PluginError: Where there is no such component, or its options cannot be imported.
        UsageError: Where the text is no value of that type.
    """
    plugins = registry()
    options = plugins.options_class(plugins.spec(kind, component))
    try:
        declared = typing.get_type_hints(options).get(key, str) if options else str
    except NameError:  # it names a type that only type checkers import
        return text
    kinds = typing.get_args(declared) if typing.get_origin(declared) in (Union, UnionType) else ()
    kinds = kinds or (declared,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    if str not in kinds and {bool, int, float} & set(kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise UsageError(
            f"option {key!r} of {kind} {component!r} cannot be {text!r}", hint=f"give a {wanted}"
        )
    return text


def typed_pairs(flag: str, texts: Sequence[str], component: str, kind: Any) -> dict[str, Any]:
    """A component's options as typed, KEY=VALUE each.

    Raises:
        UsageError: Where a text cannot be read, a key is given twice, or a value has another type.
        PluginError: Where there is no such component.
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
