"""Finding plugins, each in isolation: what one does wrong becomes its record and nobody's trouble.

pluggy says which functions of a module are hooks and whether they fit their declarations. Its own
loading of entry points is not used: there one import that fails ends the host, and the second of
two entry points of one name is dropped without a word. Distributions are asked one by one, because
`importlib.metadata.entry_points()` fails as a whole where one `entry_points.txt` cannot be parsed.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any

import attrs
import pluggy
from pluggy import HookCaller

from ppap_framework import hookspecs
from ppap_framework.errors import PluginError
from ppap_framework.plugin import (
    PPAP_API,
    AdapterSpec,
    Asset,
    BackendSpec,
    Card,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
    GuiderSpec,
    TaskLossSpec,
)
from ppap_framework.registry._records import (
    PluginRecord,
    Status,
    install_hint,
    kind_of,
    missing_module,
    normal,
    one_line,
)
from ppap_framework.registry._registry import Registry
from ppap_framework.registry._selection import Selection

GROUP = "ppap"

_RETURNS: dict[str, tuple[type, ...]] = {
    "ppap_backends": (BackendSpec,),
    "ppap_guiders": (GuiderSpec,),
    "ppap_task_losses": (TaskLossSpec,),
    "ppap_expert_adapters": (AdapterSpec,),
    "ppap_assets": (Card, ExpertBundle, DefaultTarget),
}


class _RefusedError(Exception):
    """A plugin that raised nothing and still cannot be used; the message says why."""

    def __init__(self, message: str, *, status: Status = "broken", hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint


@functools.cache
def registry() -> Registry:
    """What `discover()` found, once in a process.

    Raises:
        PluginError: Where `PPAP_STRICT_PLUGINS` is set and a plugin failed.
    """
    return discover()


def discover(
    *,
    path: list[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    strict: bool | None = None,
) -> Registry:
    """Import every installed plugin module and ask its hooks; imports no component.

    Args:
        path: The folders in which to look for distributions; None for `sys.path`.
        environ: Where the `PPAP_*` variables are read.
        strict: Whether a plugin that failed raises; None for what `PPAP_STRICT_PLUGINS` says.

    Raises:
        PluginError: For the first plugin that failed, if strict.
    """
    selection = Selection.from_environment(environ)
    found = list(_entry_points(path))
    found.sort(key=lambda pair: (pair[0].distribution, pair[0].entry_point))
    records = [_examine(record, entry, selection.excluded_by(record)) for record, entry in found]
    if selection.strict if strict is None else strict:
        for record in records:
            if record.failed:
                raise PluginError(
                    f"plugin {record.name} is {record.status}: {record.reason}", hint=record.hint
                ) from record.error
    return Registry(tuple(records), tuple(selection.unknown(records)))


def _entry_points(path: list[str] | None) -> Iterator[tuple[PluginRecord, EntryPoint | None]]:
    """Every entry point of the group, with a record to fill.

    Where an `entry_points.txt` cannot be read, a broken record alone.
    """
    seen = set()
    for distribution in distributions() if path is None else distributions(path=path):
        if not _has_plugins(distribution):
            continue
        name, version = _identity(distribution)
        if name in seen:  # the same one again, further down the path
            continue
        seen.add(name)
        try:
            found = [entry for entry in distribution.entry_points if entry.group == GROUP]
        except Exception as error:
            yield (
                PluginRecord(
                    distribution=name,
                    version=version,
                    entry_point="?",
                    module="?",
                    status="broken",
                    reason=f"its entry_points.txt cannot be read: {one_line(error)}",
                    hint=f"pip install --force-reinstall {name}",
                    error=error,
                ),
                None,
            )
            continue
        for entry in found:
            record = PluginRecord(
                distribution=name, version=version, entry_point=entry.name, module=entry.value
            )
            yield record, entry


def _has_plugins(distribution: Distribution) -> bool:
    try:
        return f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or "")
    except Exception:
        return _identity(distribution)[0].startswith("ppap-plugin-")


def _identity(distribution: Distribution) -> tuple[str, str | None]:
    """The normal name and the version; the name of the folder where the metadata are damaged."""
    try:
        metadata: Any = distribution.metadata
        name, version = metadata.get("Name"), metadata.get("Version")
    except Exception:
        name = version = None
    if not name:
        # No public attribute tells where a distribution without a name lies.
        folder = Path(str(getattr(distribution, "_path", None) or "unnamed")).name
        name = folder.removesuffix(".dist-info").removesuffix(".egg-info").partition("-")[0]
    return normal(str(name)), version


def _examine(
    record: PluginRecord, entry_point: EntryPoint | None, excluded_by: str | None
) -> PluginRecord:
    if excluded_by:
        return attrs.evolve(
            record, status="disabled", reason=f"by {excluded_by}", hint=f"unset {excluded_by}"
        )
    return _load(record, entry_point) if entry_point else record


def _load(record: PluginRecord, entry_point: EntryPoint) -> PluginRecord:
    doing = f"importing {entry_point.value}"
    offered: list[ComponentSpec | Asset] = []
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, often JSON
            plugin = entry_point.load()
            doing = "reading PPAP_API"
            check_api(plugin, record.distribution)
            doing = "registering its hooks"
            for caller in _hooks(plugin, record.name):
                doing = f"{caller.name}()"
                offered += _answers(caller)
            _check_unique(offered)
    except KeyboardInterrupt:
        raise
    except _RefusedError as refusal:
        return attrs.evolve(record, status=refusal.status, reason=str(refusal), hint=refusal.hint)
    except BaseException as error:  # SystemExit too: no plugin may end the host
        if module := missing_module(error, entry_point.value):
            return attrs.evolve(
                record,
                status="missing-dependency",
                reason=f"it needs the module {module}, which is not installed",
                hint=install_hint(module),
                error=error,
            )
        reason = f"{doing}: {one_line(error)}"
        return attrs.evolve(record, status="broken", reason=reason, error=error)
    return attrs.evolve(
        record,
        specs=tuple(item for item in offered if isinstance(item, ComponentSpec)),
        assets=tuple(item for item in offered if not isinstance(item, ComponentSpec)),
    )


def check_api(plugin: object, distribution: str) -> None:
    """Accept a plugin of the same major version of the interface and no later minor one.

    Raises:
        Exception: Where `plugin.PPAP_API` says anything else, or nothing.
    """
    stated = getattr(plugin, "PPAP_API", None)
    if (
        type(stated) is not tuple
        or len(stated) != 2
        or any(type(number) is not int or number < 0 for number in stated)
    ):
        wrong = f"its PPAP_API must be a tuple of two whole numbers, not {stated!r:.60}"
        raise _RefusedError(
            "it states no PPAP_API" if stated is None else wrong,
            status="incompatible",
            hint=f"its author writes `PPAP_API = {PPAP_API}` in the plugin module",
        )
    if stated[0] != PPAP_API[0] or stated > PPAP_API:
        outdated = distribution if stated < PPAP_API else "ppap-framework"
        raise _RefusedError(
            f"its PPAP_API is {stated}, and this ppap-framework has {PPAP_API}",
            status="incompatible",
            hint=f"pip install --upgrade {outdated}",
        )


def _hooks(plugin: object, name: str) -> list[HookCaller]:
    """The hooks that a plugin implements, registered and checked by pluggy.

    With a manager of its own for each plugin, none can wrap or disturb another one's hooks.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    callers = manager.get_hookcallers(plugin) or []
    asked = {caller.name for caller in callers}
    for caller in callers:
        optional = all(implementation.optionalhook for implementation in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            near = difflib.get_close_matches(caller.name, _RETURNS, n=1)
            advice = f" (did you mean {near[0]}?)" if near else ""
            raise _RefusedError(f"{caller.name} is none of the hooks{advice}")
    for hook in _RETURNS:
        if hook not in asked and callable(getattr(plugin, hook, None)):
            raise _RefusedError(f"{hook} is not decorated with @hookimpl")
    known = [caller for caller in callers if caller.has_spec()]
    if not known:
        raise _RefusedError(f"it implements none of {', '.join(_RETURNS)}")
    return known


def _answers(caller: HookCaller) -> list[ComponentSpec | Asset]:
    """What one hook returns, checked to be records of the right type."""
    wanted = _RETURNS[caller.name]
    rule = (
        f"{caller.name}() must return a list of {' and '.join(wants.__name__ for wants in wanted)}"
    )
    answers = caller()
    if len(answers) != len(caller.get_hookimpls()):  # pluggy leaves None out
        raise _RefusedError(f"{rule}, not None")
    for answer in answers:
        if not isinstance(answer, list | tuple):
            raise _RefusedError(f"{rule}, not {type(answer).__name__}")
        for item in answer:
            if not isinstance(item, wanted):
                raise _RefusedError(f"{rule}, and one item is {type(item).__name__}")
    return [item for answer in answers for item in answer]


def _check_unique(offered: list[ComponentSpec | Asset]) -> None:
    seen = set()
    for item in offered:
        if isinstance(item, ComponentSpec):
            label = f"{kind_of(item)} {item.name!r}"
        elif isinstance(item, Card):
            label = f"checkpoint {item.name!r} of {item.kind} {item.component!r}"
        elif isinstance(item, ExpertBundle):
            label = f"experts {item.name!r}"
        else:
            label = f"default target of guider {item.guider!r} with {item.checkpoint!r}"
        if label in seen:
            raise _RefusedError(f"it offers {label} twice")
        seen.add(label)
