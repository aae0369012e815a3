"""The messages for names that cannot be resolved: what was asked for, and what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal

from ppap_framework.errors import PluginError
from ppap_framework.plugin import Card, ComponentKind
from ppap_framework.registry._records import PluginRecord, split

FIRST_PARTY: dict[ComponentKind, dict[str, str]] = {
    "backend": {"adm": "ppap-plugin-adm", "glide": "ppap-plugin-glide"},
    "guider": {
        "adm-classifier": "ppap-plugin-adm",
        "classifier": "ppap-plugin-classifier",
        "clip": "ppap-plugin-glide",
        "depth": "ppap-plugin-midas",
        "segmentation": "ppap-plugin-segmentation",
    },
    "loss": {
        "clip-similarity": "ppap-plugin-glide",
        "cross-entropy": "ppap-plugin-classifier",
        "depth-mse": "ppap-plugin-midas",
        "depth-ssi": "ppap-plugin-midas",
        "segmentation-cross-entropy": "ppap-plugin-segmentation",
    },
    "adapter": {"bias": "ppap-plugin-bias", "lora": "ppap-plugin-lora"},
}
"""Which distribution of this project supplies what, for the hint when it is not installed."""

CardKind = Literal["backend", "guider"]

CHECKPOINT_FLAGS: dict[CardKind, str] = {
    "backend": "--checkpoint",
    "guider": "--guider-checkpoint",
}
"""How a checkpoint is named on the command line."""

_EMBEDDED_WORLD = "ppap-plugin-shapes"


def missing_component(
    kind: ComponentKind, name: str, known: Sequence[str], records: Sequence[PluginRecord]
) -> PluginError:
    """Nobody supplies the component: because it is unknown, not installed, or its plugin failed.

    Args:
        kind: What was asked for.
        name: As it was typed, perhaps "distribution:name".
        known: The names of that kind that can be had.
        records: Every plugin.
    """
    distribution, bare = split(name)
    supplier = distribution or FIRST_PARTY[kind].get(bare)
    for record in records:
        if record.distribution == supplier and record.status != "ok":
            comes_with = f"{kind} {bare!r} may come" if distribution else f"{kind} {bare!r} comes"
            return PluginError(
                f"{comes_with} with {supplier}, which is {record.status}: {record.reason}",
                hint=record.hint or "`ppap doctor` shows the traceback",
            )
    advice = []
    if distribution is None and supplier:
        advice.append(_install(supplier, records))
    elif near := _nearest(bare, known):
        advice.append(f"did you mean {near!r}?")
    elif near := _nearest(bare, FIRST_PARTY[kind]):
        advice.append(f"did you mean {near!r}? {_install(FIRST_PARTY[kind][near], records)}")
    installed = ", ".join(dict.fromkeys(known))
    advice.append(f"installed: {installed}" if installed else f"no {kind} is installed")
    if any(record.failed for record in records):
        advice.append("`ppap doctor` shows the plugins that failed")
    who = f"{distribution} supplies no {kind}" if distribution else f"no installed {kind} is"
    return PluginError(f"{who} called {bare!r}", hint="; ".join(advice).replace("?;", "?"))


def contested(subject: str, flag: str, name: str, providers: Sequence[PluginRecord]) -> PluginError:
    """Several plugins claim one name."""
    bare = split(name)[1]
    forms = list(dict.fromkeys(f"{record.distribution}:{bare}" for record in providers))
    if len(forms) == len(providers):
        hint = "type " + " or ".join(f"{flag} {form}" for form in forms)
    else:
        hint = f"keep one: PPAP_DISABLE_PLUGINS={providers[-1].name}"
    claims = ", ".join(record.name for record in providers)
    return PluginError(f"{subject} is claimed by {len(providers)} plugins: {claims}", hint=hint)


def of_use(cards: Iterable[Card]) -> list[str]:
    """What may be typed of checkpoints: those that are of no use alone, joined."""
    usable = [card.joined or card.name for card in cards if not card.refusal]
    return list(dict.fromkeys(usable))


def card_hint(
    kind: CardKind,
    component: str,
    name: str,
    known: Sequence[str],
    records: Sequence[PluginRecord],
) -> str:
    """What to do about a checkpoint that is not there.

    Args:
        kind: What it would be for.
        component: The name of that, perhaps "distribution:name".
        name: Of the checkpoint, as it was typed; empty where the default was wanted.
        known: The checkpoints that there are.
        records: Every plugin.
    """
    if known:
        return _one_of(name, known)
    hint = f"name a file with {CHECKPOINT_FLAGS[kind]} PATH"
    if split(component)[1] not in FIRST_PARTY[kind]:
        return hint
    world = [record for record in records if record.distribution == _EMBEDDED_WORLD]
    if not world:
        return f"{hint}, or pip install {_EMBEDDED_WORLD} for small weights"
    for record in world:
        if record.status != "ok":
            remedy = record.hint or "`ppap doctor` shows the traceback"
            return f"{hint}; {_EMBEDDED_WORLD} may have some, but is {record.status}: {remedy}"
    return hint


def checkpoints_hint(name: str, known: Sequence[str]) -> str:
    """What to do about a checkpoint that is not there, whatever it would be for."""
    near = _nearest(name, known)
    return (f"did you mean {near!r}? " if near else "") + "`ppap checkpoints list` shows them"


def experts_hint(name: str, known: Sequence[str]) -> str:
    """What to do about experts that are not there; arguments as for `card_hint`."""
    return _one_of(name, known) if known else "name a file with --experts PATH"


def _install(distribution: str, records: Sequence[PluginRecord]) -> str:
    """What brings a component: an installed distribution that lacks it is too old."""
    installed = any(record.distribution == distribution for record in records)
    return f"pip install {'--upgrade ' if installed else ''}{distribution}"


def _one_of(name: str, known: Sequence[str]) -> str:
    near = _nearest(name, known)
    listed = f"give the path of a file, or one of {', '.join(dict.fromkeys(known))}"
    return f"did you mean {near!r}? Otherwise {listed}" if near else listed


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)), None)
