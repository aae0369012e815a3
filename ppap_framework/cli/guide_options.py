"""What options mean: the backend, settings, and guides.

Guides are `--guider NAME[=SCALE][:LO-HI]`, and options with `guide=value`; a value without a name
is for the only guide. SCALE is as in `--scale`; LO and HI are t / T, and 1 is pure noise.

    --guider depth=2 --guider classifier=4:0.2-0.9 --target depth=ref.png --target classifier=cube
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ppap_framework.errors import Problems, UsageError
from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import registry
from ppap_framework.registry.refusals import nearest
from ppap_framework.run import Compute, FoundBackend, GuideRequest, Sampling, changed, find_backend

_FORM = "NAME, NAME=SCALE, NAME:LO-HI or NAME=SCALE:LO-HI, such as classifier=4:0.2-0.9"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_BARE = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_COMPONENT = re.compile(rf"(?:[\w.-]+:)?{_BARE}")
_GUIDER = re.compile(
    rf"(?P<source>(?:[\w.-]+:)??{_BARE})"
    rf"(?:=(?P<scale>(?:raw:)?(?:{_NUMBER}|[+-]?inf|nan)|auto))?"
    rf"(?::(?P<low>{_NUMBER})-(?P<high>{_NUMBER}))?"
)

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


def backend_of(given: Mapping[str, Any], *more: str, offline: bool = False) -> FoundBackend:
    """The diffusion model of a command line, not yet loaded; `more` are further KEY=VALUE."""
    chosen = {name: given[name] for name in ("checkpoint", "dtype")}
    found = find_backend(given["backend"], **chosen, offline=offline)
    texts = [*given["backend_option"], *more]
    name = f"{registry().provider(found.spec).distribution}:{found.spec.name}"
    options = typed_pairs("--backend-option", texts, name, "backend")
    registry().options(found.spec, options)
    return attrs.evolve(found, options=options)


def settings_of(given: Mapping[str, Any], **others: Any) -> tuple[Sampling, Compute]:
    """Settings by the options called like them, and `others` without an option; not checked."""
    fields = {*attrs.fields_dict(Sampling), *attrs.fields_dict(Compute)}
    changes = {k: v for k, v in given.items() if k in fields and v is not None}
    sampling, compute = changed(changes | others, Sampling(), Compute())
    return sampling, compute


def parse_guides(
    given: Mapping[str, Any], problems: Problems, *, offline: bool = False
) -> list[GuideRequest]:
    """The guides of a command line that could be read; `problems` collects what cannot.

    `given` are values of options by parameter name: `guider`, and if the command has them `scale`,
    `allow_mismatch`, and those of `_FIELDS`. An option that is given once may be a text.
    """
    wanted = [text.strip() for text in _several(given["guider"])]
    guides: dict[str, dict[str, Any]] = {}
    if "none" in wanted:
        if len(wanted) > 1:
            problems.add("--guider none goes with no other guider", "leave out one of them")
        wanted = []
    for guide in filter(None, [problems.attempt(_guide, text) for text in wanted]):
        name = guide["source"].rpartition(":")[2]
        if guides.setdefault(name, guide) is not guide:
            problems.add(f"--guider {name} is given twice", "give it once, with one scale")
    misplaced = Problems()
    for parameter in _FIELDS:
        for text in _several(given.get(parameter)):
            misplaced.attempt(_assign, parameter, text, guides)
    if len(guides) == len(wanted):  # else they may be for the guide that could not be read
        problems.errors += misplaced.errors
    requests = (problems.attempt(_request, guide, given, offline) for guide in guides.values())
    return [*filter(None, requests)]


def guide_of(given: Mapping[str, Any]) -> GuideRequest:
    """The network of a command that has one and does not guide with it, checked."""
    if given["guider"].strip() == "none":
        raise UsageError("--guider none names no network", hint="name one with --guider")
    problems = Problems()
    requests = parse_guides(given, problems)
    problems.check()
    [request] = requests
    if request.scale is not None or request.interval != (0.0, 1.0):
        message = f"--guider {request.label} takes no scale and no interval here"
        raise UsageError(message, hint="they are for `ppap run`; give the name alone")
    request.check()
    return request


def typed_pairs(flag: str, texts: Sequence[str], name: str, kind: ComponentKind) -> dict[str, Any]:
    """Options of the component `name`, KEY=VALUE each."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"{flag} {text!r} cannot be read", hint="type KEY=VALUE")
        if key in found:
            raise UsageError(f"{flag} {key} is given twice", hint="give each key once")
        found[key] = value.strip()
    plugins = registry()
    return plugins.typed(plugins.spec(kind, name), found) if found else found


def _several(value: str | Sequence[str] | None) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else value


def _guide(text: str) -> dict[str, Any]:
    """Fields of a request, from what was typed behind --guider."""
    match = _GUIDER.fullmatch(text)
    if match is None:
        name = re.split("[=:]", text)[0]
        near = nearest(name, {spec.name for spec in registry().specs("guider")})
        typo = near and not text.startswith(near)
        hint = f"did you mean {near!r}?" if typo else f"type {_FORM}"
        raise UsageError(f"--guider {text!r} cannot be read", hint=hint)
    guide: dict[str, Any] = {"source": match["source"], "options": [], "loss_options": []}
    if scale := match["scale"]:
        guide["scale"] = scale if scale.startswith(("auto", "raw:")) else float(scale)
    if match["low"]:
        guide["interval"] = float(match["low"]), float(match["high"])
    return guide


def _assign(parameter: str, text: str, guides: Mapping[str, dict[str, Any]]) -> None:
    """Give the value of an option to the guide that it names."""
    flag, field = f"--{parameter.replace('_', '-')}", _FIELDS[parameter]
    before, equals, after = text.partition("=")
    if is_pair := field.endswith("options"):
        name, named, key = before.rpartition(".")
        value = f"{key}{equals}{after}"
    else:
        name = before.strip()
        named = equals if _COMPONENT.fullmatch(name) else ""
        value = (after if named else text).strip()
    if not guides:
        raise UsageError(f"{flag} {text!r} is for a guide, and there is none", hint="add --guider")
    matching = [n for n, g in guides.items() if not named or name in (n, g["source"])]
    if len(matching) != 1:
        unused = f"is for guide {name!r}, which is not used"
        where = unused if named else "does not say for which guide it is"
        forms = " or ".join(f"{flag} {shlex.quote(f'{name}={text}')}" for name in guides)
        hint = f"type {'GUIDE.KEY=VALUE' if is_pair else forms}"
        raise UsageError(f"{flag} {text!r} {where}", hint=hint)
    [name] = matching
    if is_pair:
        guides[name][field].append(value)
    elif field in guides[name]:
        message = f"{flag} is given twice for guide {name!r}"
        raise UsageError(message, hint="give it once for each guide")
    else:
        guides[name][field] = value


def _request(guide: dict[str, Any], given: Mapping[str, Any], offline: bool) -> GuideRequest:
    source, texts = guide["source"], guide["loss_options"]
    plugins, loss = registry(), guide.get("loss", "")
    if texts and not loss:
        default = plugins.default_loss(plugins.spec("guider", source))
        loss = f"{plugins.provider(default).distribution}:{default.name}"
    fields: dict[str, Any] = {"scale": given.get("scale")} | guide
    fields["options"] = typed_pairs("--guider-option", guide["options"], source, "guider")
    fields["loss_options"] = typed_pairs("--loss-option", texts, loss, "loss")
    return GuideRequest(**fields, allow_mismatch=given.get("allow_mismatch", ()), offline=offline)
