"""Discovery of plugins, each in isolation: an error of one is recorded and disturbs no other.

pluggy says which functions of a module are hooks and whether they fit their declarations. Its own
loading of entry points is not used: one failing import would end the host, and the second of two
entry points of one name is silently dropped. Distributions are asked one by one, because
`importlib.metadata.entry_points()` fails as a whole if one `entry_points.txt` cannot be parsed.

Environment variables select plugins: `PPAP_PLUGINS` (only these) and `PPAP_DISABLE_PLUGINS` are
comma-separated distributions, entry points, or "distribution:entry-point";
`PPAP_STRICT_PLUGINS=1` makes a plugin that fails raise.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any

import attrs
import pluggy
from pluggy import HookCaller

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
    Hooks,
    TaskLossSpec,
)
from ppap_framework.registry.lookup import Registry
from ppap_framework.registry.records import (
    PluginRecord,
    Status,
    install_hint,
    label,
    missing_module,
    normal,
    one_line,
)

GROUP = "ppap"
ONLY = "PPAP_PLUGINS"
DISABLE = "PPAP_DISABLE_PLUGINS"
STRICT = "PPAP_STRICT_PLUGINS"

_RETURNS: dict[str, tuple[type, ...]] = {
    "ppap_backends": (BackendSpec,),
    "ppap_guiders": (GuiderSpec,),
    "ppap_task_losses": (TaskLossSpec,),
    "ppap_expert_adapters": (AdapterSpec,),
    "ppap_assets": (Card, ExpertBundle, DefaultTarget),
}


class _RefusedError(Exception):
    """A plugin that raised nothing but cannot be used; the message says why."""

    def __init__(self, message: str, *, status: Status = "broken", hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint


@functools.cache
def registry() -> Registry:
    """The result of `discover()`, once in a process."""
    return discover()


def discover(
    *,
    path: list[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    strict: bool | None = None,
) -> Registry:
    """Import every installed plugin module and ask its hooks; imports no component.

    Args:
        path: Folders in which to look for distributions; None for `sys.path`.
        environ: Environment variables.
        strict: Whether a plugin that fails raises; None for the value of `PPAP_STRICT_PLUGINS`.

    Raises:
        PluginError: For the first plugin that failed, if strict.
    """
    found = sorted(_plugins(path), key=lambda pair: (pair[0].distribution, pair[0].entry_point))
    records = []
    for record, entry_point in found:
        if variable := excluded_by(record, environ):
            reason, hint = f"by {variable}", f"unset {variable}"
            record = attrs.evolve(record, status="disabled", reason=reason, hint=hint)
        elif entry_point:
            record = _load(record, entry_point)
        records.append(record)
    if strict is None:
        strict = environ.get(STRICT, "").strip().lower() not in ("", "0", "false", "no", "off")
    for record in records if strict else ():
        if record.failed:
            raise PluginError(
                f"plugin {record.name} is {record.status}: {record.reason}", hint=record.hint
            ) from record.error
    return Registry(tuple(records), unknown_names(records, environ))


def excluded_by(plugin: PluginRecord, environ: Mapping[str, str]) -> str | None:
    """The environment variable that excludes a plugin, or None."""
    if any(_means(word, plugin) for word in _words(environ, DISABLE)):
        return DISABLE
    only = _words(environ, ONLY)
    return ONLY if only and not any(_means(word, plugin) for word in only) else None


def unknown_names(
    plugins: Sequence[PluginRecord], environ: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """The words that name no plugin, each with its variable."""
    return tuple(
        (variable, word)
        for variable in (ONLY, DISABLE)
        for word in _words(environ, variable)
        if not any(_means(word, plugin) for plugin in plugins)
    )


def _words(environ: Mapping[str, str], variable: str) -> list[str]:
    return [word.strip() for word in environ.get(variable, "").split(",") if word.strip()]


def _means(word: str, plugin: PluginRecord) -> bool:
    distribution, colon, entry_point = word.partition(":")
    if colon:
        return normal(distribution) == plugin.distribution and entry_point == plugin.entry_point
    return normal(word) == plugin.distribution or word == plugin.entry_point


def _plugins(path: list[str] | None) -> Iterator[tuple[PluginRecord, EntryPoint | None]]:
    """A record for every entry point of the group; one without it if they cannot be read."""
    seen = set()
    for distribution in distributions() if path is None else distributions(path=path):
        if not _has_plugins(distribution):
            continue
        name, version = _identity(distribution)
        if name in seen:  # the same one again, further down the path
            continue
        seen.add(name)
        blank = PluginRecord(distribution=name, version=version, entry_point="?", module="?")
        try:
            found = [entry for entry in distribution.entry_points if entry.group == GROUP]
        except Exception as error:
            reason = f"its entry_points.txt cannot be read: {one_line(error)}"
            hint = f"pip install --force-reinstall {name}"
            yield attrs.evolve(blank, status="broken", reason=reason, hint=hint, error=error), None
            continue
        for entry in found:
            yield attrs.evolve(blank, entry_point=entry.name, module=entry.value), entry


def _has_plugins(distribution: Distribution) -> bool:
    try:
        return f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or "")
    except Exception:
        return _identity(distribution)[0].startswith("ppap-plugin-")


def _identity(distribution: Distribution) -> tuple[str, str | None]:
    """The normal name and the version; the name of the folder if the metadata is damaged."""
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


def _load(record: PluginRecord, entry_point: EntryPoint) -> PluginRecord:
    """The record with what the plugin supplies, or its error."""
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
        labels = [label(item) for item in offered]
        if twice := [one for index, one in enumerate(labels) if one in labels[:index]]:
            raise _RefusedError(f"it offers {twice[0]} twice")
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
        Exception: If `plugin.PPAP_API` says anything else, or nothing.
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

    A separate manager for each plugin keeps it from wrapping another's hooks.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(plugin, name)
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        optional = all(implementation.optionalhook for implementation in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            near = difflib.get_close_matches(caller.name, _RETURNS, n=1)
            advice = f" (did you mean {near[0]}?)" if near else ""
            raise _RefusedError(f"{caller.name} is none of the hooks{advice}")
    decorated = {caller.name for caller in callers}
    for hook in _RETURNS:
        if hook not in decorated and callable(getattr(plugin, hook, None)):
            raise _RefusedError(f"{hook} is not decorated with @hookimpl")
    known = [caller for caller in callers if caller.has_spec()]
    if not known:
        raise _RefusedError(f"it implements none of {', '.join(_RETURNS)}")
    return known


def _answers(caller: HookCaller) -> list[ComponentSpec | Asset]:
    """The records that one hook returns, with their types checked."""
    wanted = _RETURNS[caller.name]
    rule = f"{caller.name}() must return a list of {' and '.join(one.__name__ for one in wanted)}"
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
