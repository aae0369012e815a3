"""Discovery of plugins, each in isolation: an error of one is recorded and disturbs no other.

pluggy checks hooks but loads no entry points: one failing import would end the host, and the second
of two entry points of one name would be dropped. Distributions are asked one by one, because
`importlib.metadata.entry_points()` fails as a whole if one `entry_points.txt` cannot be parsed.

Environment variables select plugins: `PPAP_PLUGINS` (only these) and `PPAP_DISABLE_PLUGINS` are
comma-separated distributions, entry points, or "distribution:entry-point";
`PPAP_STRICT_PLUGINS=1` makes a plugin that fails raise.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any, get_args

import attrs
import pluggy
from pluggy import HookCaller

from ppap_framework import plugin
from ppap_framework.errors import PluginError, UsageError, did_you_mean, one_line
from ppap_framework.files import expanded, is_on
from ppap_framework.plugin import PPAP_API, Asset, ComponentSpec, Hooks
from ppap_framework.registry.lookup import Registry
from ppap_framework.registry.records import PluginRecord, Status, label, missing_dependency, normal

GROUP = "ppap"
ONLY = "PPAP_PLUGINS"
DISABLE = "PPAP_DISABLE_PLUGINS"
STRICT = "PPAP_STRICT_PLUGINS"

_RETURNS: dict[str, tuple[type, ...]] = {
    "ppap_backends": (plugin.BackendSpec,),
    "ppap_guiders": (plugin.GuiderSpec,),
    "ppap_task_losses": (plugin.TaskLossSpec,),
    "ppap_expert_adapters": (plugin.AdapterSpec,),
    "ppap_assets": get_args(Asset),
}


class _RefusedError(PluginError):
    """A plugin that raised nothing but cannot be used."""


_files: list[PluginRecord] = []  # of `plugin_file`


@functools.cache
def registry() -> Registry:
    """The result of `discover()`, once in a process."""
    return discover()


@contextlib.contextmanager
def plugin_file(path: str) -> Iterator[None]:
    """A context in which NAME.py is a plugin; its factories are "NAME:attribute"."""
    file = expanded(path).absolute()
    name, is_name = file.stem, file.suffix == ".py" and file.stem.isidentifier()
    other = importlib.util.find_spec(name) if is_name else None  # of the file itself, or in its way
    if not (is_name and file.is_file() and (other is None or other.origin == str(file))):
        fault = f"{path!r} is no Python file with a module name of its own"
        raise UsageError(fault, hint="type a path such as ./my_guider.py")
    record = PluginRecord(distribution=normal(name), version=None, entry_point=name, module=name)
    sys.path.append(str(file.parent))
    try:
        _files.append(record := _loaded(record, EntryPoint(name, name, GROUP), {}))
        if record.failed:
            raise PluginError(f"{path}: {record.reason}", hint=record.hint) from record.error
        registry.cache_clear()
        yield
    finally:
        _files.clear()
        registry.cache_clear()
        sys.path.remove(str(file.parent))
        sys.modules.pop(name, None)


def discover(
    *,
    path: list[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    strict: bool | None = None,
) -> Registry:
    """Import every plugin module that is installed in the folders `path`, by default `sys.path`,
    and ask its hooks; imports no component. `strict`, by default as the environment says, makes the
    first plugin that failed raise PluginError.
    """
    found = sorted(_plugins(path), key=lambda pair: (pair[0].distribution, pair[0].entry_point))
    plugins = (*_files, *(_loaded(record, entry_point, environ) for record, entry_point in found))
    for record in plugins:
        if record.failed and (is_on(STRICT, environ) if strict is None else strict):
            fault = f"plugin {record.name} is {record.status}: {record.reason}"
            raise PluginError(fault, hint=record.hint) from record.error
    return Registry(plugins, unknown_names(plugins, environ))


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
    named = [(variable, word) for variable in (ONLY, DISABLE) for word in _words(environ, variable)]
    return tuple(pair for pair in named if not any(_means(pair[1], one) for one in plugins))


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


def _loaded(
    record: PluginRecord, entry_point: EntryPoint | None, environ: Mapping[str, str]
) -> PluginRecord:
    """The record with what the plugin supplies, or why it supplies nothing."""
    if variable := excluded_by(record, environ):
        reason, hint = f"by {variable}", f"unset {variable}"
        return attrs.evolve(record, status="disabled", reason=reason, hint=hint)
    if entry_point is None:
        return record
    doing = f"importing {entry_point.value}"
    offered: list[ComponentSpec | Asset] = []
    status: Status = "broken"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results, often JSON
            module = entry_point.load()
            doing, status = "reading PPAP_API", "incompatible"
            check_api(module, record.distribution)
            doing, status = "registering its hooks", "broken"
            for caller in _hooks(module, record.name):
                doing = f"{caller.name}()"
                offered += _answers(caller)
        labels = [label(item) for item in offered]
        if twice := [one for index, one in enumerate(labels) if one in labels[:index]]:
            raise _RefusedError(f"it offers {twice[0]} twice")
    except KeyboardInterrupt as stop:
        hint = f"{DISABLE}={record.name} leaves it out"
        raise KeyboardInterrupt(f"plugin {record.name} was being loaded; {hint}") from stop
    except _RefusedError as refusal:
        return attrs.evolve(record, status=status, reason=refusal.message, hint=refusal.hint)
    except BaseException as error:  # SystemExit too: no plugin may end the host
        status, reason, hint = "broken", f"{doing}: {one_line(error)}", ""
        if missing := missing_dependency(error, entry_point.value):
            status, reason, hint = "missing-dependency", f"it {missing[0]}", missing[1]
        return attrs.evolve(record, status=status, reason=reason, hint=hint, error=error)
    specs = tuple(item for item in offered if isinstance(item, ComponentSpec))
    assets = tuple(item for item in offered if not isinstance(item, ComponentSpec))
    return attrs.evolve(record, specs=specs, assets=assets)


def check_api(module: object, distribution: str) -> None:
    """PluginError unless a module is of the same major version and no later minor one."""
    stated = getattr(module, "PPAP_API", None)
    fault, hint = "", f"its author writes `PPAP_API = {PPAP_API}` in the plugin module"
    if stated is None:
        fault = "it states no PPAP_API"
    elif type(stated) is not tuple or [type(number) for number in stated] != [int, int]:
        fault = f"its PPAP_API must be a tuple of two whole numbers, not {stated!r:.60}"
    elif stated[0] != PPAP_API[0] or not (PPAP_API[0], 0) <= stated <= PPAP_API:
        fault = f"its PPAP_API is {stated}, and this ppap-framework has {PPAP_API}"
        outdated = distribution if stated < PPAP_API else "ppap-framework"
        hint = f"pip install --upgrade {outdated}"
    if fault:
        raise _RefusedError(fault, hint=hint)


def _hooks(module: object, name: str) -> list[HookCaller]:
    """The hooks that a plugin implements, registered and checked by pluggy."""
    manager = pluggy.PluginManager(GROUP)  # of its own, so that no plugin wraps another's hooks
    manager.add_hookspecs(Hooks)
    manager.register(module, name)
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        optional = all(implementation.optionalhook for implementation in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            question = did_you_mean(caller.name, _RETURNS)
            raise _RefusedError(f"{caller.name} is none of the hooks; {question}".strip("; "))
    decorated = {caller.name for caller in callers}
    for hook in _RETURNS:
        if hook not in decorated and callable(getattr(module, hook, None)):
            raise _RefusedError(f"{hook} is not decorated with @hookimpl")
    known = [caller for caller in callers if caller.has_spec()]
    if not known:
        raise _RefusedError(f"it implements none of {', '.join(_RETURNS)}")
    return known


def _answers(caller: HookCaller) -> Iterator[Any]:
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
            yield item
