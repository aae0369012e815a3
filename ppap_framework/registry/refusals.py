"""Errors for names that cannot be resolved: what was asked for, and what to type instead.

`pip install ppap-framework[NAME]` brings the component NAME, so the extras of ppap-framework tell
which distribution supplies a component that is not installed.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING

from ppap_framework.errors import PluginError, did_you_mean
from ppap_framework.plugin import CardKind, ComponentKind
from ppap_framework.registry.records import Item, Offers, split

if TYPE_CHECKING:
    from ppap_framework.registry.lookup import Registry

CHECKPOINT_FLAGS: dict[CardKind, str] = {"backend": "--checkpoint", "guider": "--guider-checkpoint"}
"""The option of the command line that names a checkpoint."""

_EXTRA = re.compile(r"([\w.-]+).*; *extra *== *['\"]([\w.-]+)['\"]")
_DOCTOR = "`ppap doctor` shows the traceback"


def suppliers() -> dict[str, str]:
    """The distribution of each component that has an extra."""
    return {name: brought[0] for name, brought in _extras().items() if len(brought) == 1}


def _extras() -> dict[str, list[str]]:
    """Distributions of each extra of ppap-framework; none if it is not installed."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        requirements = metadata.requires("ppap-framework") or ()
        for match in filter(None, map(_EXTRA.fullmatch, requirements)):
            found.setdefault(match[2], []).append(match[1])
    return found


def missing_component(found: Registry, kind: ComponentKind, name: str) -> PluginError:
    """The error for a component that is unknown or not installed, or whose plugin failed."""
    known, records = [spec.name for spec in found.specs(kind)], found.records
    (distribution, bare), bringing = split(name), suppliers()
    supplier = distribution or bringing.get(bare)
    for record in records:
        if record.distribution == supplier and record.status != "ok":
            comes_with = f"{kind} {bare!r} {'may come' if distribution else 'comes'} with"
            fault = f"{comes_with} {supplier}, which is {record.status}: {record.reason}"
            return PluginError(fault, hint=record.hint or _DOCTOR)

    def install(lacking: str) -> str:
        old = any(record.distribution == lacking for record in records)
        return f"pip install {'--upgrade ' if old else ''}{lacking}"

    advice = []
    if supplier and not distribution:
        advice.append(install(supplier))
    elif near := nearest(bare, known):
        advice.append(f"did you mean {near!r}?")
    elif near := nearest(bare, bringing):
        advice.append(f"did you mean {near!r}? {install(bringing[near])}")
    installed = ", ".join(dict.fromkeys(known))
    advice.append(f"installed: {installed}" if installed else f"no {kind} is installed")
    if any(record.failed for record in records):
        advice.append("`ppap doctor` shows the plugins that failed")
    who = f"{distribution} supplies no {kind}" if distribution else f"no installed {kind} is"
    return PluginError(f"{who} called {bare!r}", hint="; ".join(advice).replace("?;", "?"))


def only(offers: Offers[Item], subject: str, flag: str, name: str) -> Item:
    """The only offer of a name; PluginError if several plugins claim it."""
    if len(offers) == 1:
        return offers[0][1]
    plugins = [plugin for plugin, _ in offers]
    forms = dict.fromkeys(f"{flag} {by.distribution}:{split(name)[1]}".strip() for by in plugins)
    hint = f"type {' or '.join(forms)}"
    if len(forms) < len(plugins):
        hint = f"keep one: PPAP_DISABLE_PLUGINS={plugins[-1].name}"
    claims = ", ".join(plugin.name for plugin in plugins)
    raise PluginError(f"{subject} is claimed by {len(plugins)} plugins: {claims}", hint=hint)


def card_hint(found: Registry, kind: CardKind, component: str, name: str) -> str:
    """What to do about a checkpoint that a component does not have; `name` "" is the default."""
    cards, records = found.cards(component, kind), found.records
    known = [card.joined or card.name for card in cards]
    hint = one_of(name, known, CHECKPOINT_FLAGS[kind])
    if known or split(component)[1] not in suppliers():  # components without an extra are unknown
        return hint
    for record in records:
        if record.status != "ok":
            remedy = record.hint or _DOCTOR
            return f"{hint}; {record.distribution} may have some, but is {record.status}: {remedy}"
    if {*_extras().get("demo", ())} - {record.distribution for record in records}:
        return f"{hint}, or pip install ppap-framework[demo] for small weights"
    return hint


def one_of(name: str, known: Iterable[str], flag: str) -> str:
    """The hint to name a known file, nearest first, or a path."""
    known = list(dict.fromkeys(known))
    if not known:
        return f"name a file with {flag} PATH"
    question = did_you_mean(name, known)
    start = f"{question} Otherwise give" if question else "give"
    return f"{start} the path of a file, or one of {', '.join(known)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)), None)
