"""`ppap plugins` and `ppap doctor`, read from records, so they work if a plugin is broken.

They import neither torch nor any component, except in another process of `ppap doctor`.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import click

from ppap_framework.cli import COMMANDS, version
from ppap_framework.cli.groups import Group, plugin_commands
from ppap_framework.cli.output import json_option, print_fields, print_json, print_table, size_words
from ppap_framework.errors import PluginError
from ppap_framework.files import cache_dir
from ppap_framework.plugin import Asset, Card, ComponentSpec, DefaultTarget, ExpertBundle
from ppap_framework.registry import (
    Conflict,
    PluginRecord,
    Registry,
    conflicts,
    discover,
    normal,
    registry,
    split,
    suppliers,
)

_TARGET = "{0.text!r} for {0.guider} with {0.checkpoint}"
_ASSETS: dict[str, tuple[str, type[Asset], str]] = {
    "checkpoints": ("checkpoint", Card, "{0.name}"),
    "experts": ("experts", ExpertBundle, "{0.name}"),
    "default_targets": ("default target", DefaultTarget, _TARGET),
}
_PROBE = """
import json, torch
if torch.cuda.is_available():
    device = f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name(0)})"
else:
    device = "mps" if torch.backends.mps.is_available() else "cpu"
found = {"version": torch.__version__, "threads": torch.get_num_threads(), "device": device}
print(json.dumps(found))
"""
_CHECK = """
import contextlib, json, sys, time
from ppap_framework.registry import discover
faults = []
with contextlib.redirect_stdout(sys.stderr):
    for name in sys.argv[1:]:
        start, before = time.monotonic(), set(sys.modules)
        discover(environ={"PPAP_PLUGINS": name}, strict=False)
        if "torch" in sys.modules and "torch" not in before:
            faults.append(f"plugin {name} imports torch when it is listed, not when it is used")
        if (seconds := time.monotonic() - start) > 1.0:
            faults.append(f"plugin {name} takes {seconds:.1f} s to be listed")
    found = discover(strict=False)
    faults += [f for r in found.records for spec in r.specs for f in found.faults(spec)]
print(json.dumps(faults))
"""
_PROBE_SECONDS = 120
_DESCRIBED = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
"""An attribute and its description, in a docstring."""

_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "FORCE_COLOR", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    *("MKL_NUM_THREADS", "NO_COLOR", "OMP_NUM_THREADS", "PYTHONPATH", "TORCH_HOME"),
    "XDG_CACHE_HOME",
)
"""Variables that are shown beside `PPAP_*`; none of them holds a secret."""


@click.group("plugins", cls=Group)
def command() -> None:
    """Show what is installed."""


@command.command("list")
@json_option
def list_plugins(as_json: bool) -> None:
    """List every component, and the plugins that are not loaded."""
    records = registry().records
    components = [_summary(record, spec) for record in records for spec in record.specs]
    if as_json:
        print_json({"components": components, "plugins": [*map(_plugin, records)]})
        return
    if components:
        print_table(["kind", "name", "plugin", "version", "summary"], components)
    else:
        click.echo("No component is installed; `pip install ppap-framework[demo]` brings some.")
    _print_idle(records)


@command.command("info")
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Show everything about a component or a plugin.

    NAME is the name of a component, a distribution or an entry point, or two of them joined as
    "distribution:name".
    """
    found, (distribution, bare) = registry(), split(name)
    named = [r for r in found.records if distribution in (None, r.distribution)]
    components = [_component(found, r, s) for r in named for s in r.specs if s.name == bare]
    projects = () if distribution else (normal(bare),)
    plugins = [_plugin(r) for r in named if r.entry_point == bare or r.distribution in projects]
    if not components and not plugins:
        raise _unknown(name, found)
    if as_json:
        print_json({"components": components, "plugins": plugins})
        return
    for component in components:
        _print_component(component)
    for plugin in plugins:
        trace = plugin.pop("traceback")
        print_fields(f"plugin {plugin['plugin']}", plugin)
        click.echo(trace, nl=False)


def _print_component(component: dict[str, Any]) -> None:
    fields = component | {"licence": component["licence"] or "not stated"}
    options = fields.pop("options")
    assets = {key: fields.pop(key, []) for key in ("checkpoints", "experts")}
    if isinstance(options, str):  # why they are unknown
        fields["options"], options = options, []
    print_fields("{kind} {name}".format(**component), fields)
    if options:
        print_table(["option", "type", "default", "help"], [option.values() for option in options])
    for key, rows in assets.items():
        if rows:
            cells = [
                (
                    row["name"] + (" (default)" if row.get("default") else ""),
                    row["size"] and size_words(row["size"]),
                    row["licence"],
                    row["summary"],
                    row["uri"],
                )
                for row in rows
            ]
            print_table([key, "size", "licence", "summary", "uri"], cells)


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check the installation and every plugin.

    Every component is imported, in another process. Exits with 3 if a plugin failed, a component
    names what is not there, or two plugins are in conflict, with 1 if torch cannot be used, with 4
    if a bundle of experts cannot be attached, and otherwise with 0.
    """
    found = discover(strict=False)
    commands = {name: [*claims] for name, claims in plugin_commands().items()}
    core = "ppap-framework"  # which keeps its commands
    contested = conflicts(found)
    for name, claims in commands.items():
        if name in COMMANDS:
            contested.append(Conflict(f"command {name!r}", (core, *claims), core))
        elif len(claims) > 1:
            contested.append(Conflict(f"command {name!r}", tuple(claims)))
    torch: Any = _probe(_PROBE)
    faults: list[str] = []
    if "error" not in torch:
        checked = _probe(_CHECK, *(record.name for record in found.records if not record.failed))
        faults = (
            [f"not all components can be imported: {checked['error']}"]
            if isinstance(checked, dict)
            else checked
        )
    report = {
        "ppap": version(),
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
        },
        "torch": torch,
        "plugins": [_plugin(record) for record in found.records],
        "commands": commands,
        "faults": faults,
        "conflicts": [attrs.asdict(conflict) for conflict in contested],
        "unknown_plugin_names": [{"variable": v, "name": name} for v, name in found.unknown_names],
        "caches": [{"path": path, "bytes": size} for path, size in _caches().items()],
        "experts": _faulty_bundles(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in _VARIABLES or name.startswith("PPAP_")
        },
    }
    if as_json:
        print_json(report)
    else:
        _print(report, found)
    if any(record.failed for record in found.records) or faults or report["conflicts"]:
        return 3
    return 1 if "error" in report["torch"] else 4 * bool(report["experts"])


def _plugin(record: PluginRecord) -> dict[str, Any]:
    """Everything known of a plugin, JSON."""
    fields = ("version", "module", "status", "reason", "hint")
    return {
        "plugin": record.name,
        **{field: getattr(record, field) for field in fields},
        "components": [f"{spec.kind} {spec.name}" for spec in record.specs],
        **{
            key: [name.format(asset) for asset in record.assets if isinstance(asset, kind)]
            for key, (_, kind, name) in _ASSETS.items()
        },
        "traceback": record.traceback,
    }


def _print_idle(records: Iterable[PluginRecord]) -> None:
    """Print a table of the plugins that supply nothing, and why."""
    idle = [(r.name, r.version, r.status, r.reason, r.hint) for r in records if r.status != "ok"]
    if idle:
        print_table(["not loaded", "version", "status", "reason", "hint"], idle)


def _summary(record: PluginRecord, spec: ComponentSpec) -> dict[str, Any]:
    plugin = {"plugin": record.name, "version": record.version}
    return {"kind": spec.kind, "name": spec.name, **plugin, "summary": spec.summary}


def _component(found: Registry, record: PluginRecord, spec: ComponentSpec) -> dict[str, Any]:
    """Everything known of a component, JSON; imports its options class alone."""
    described = {**_summary(record, spec), **attrs.asdict(spec), "options": _options(found, spec)}
    if spec.kind not in ("backend", "guider"):
        return described
    name, described["checkpoints"] = f"{record.distribution}:{spec.name}", []
    for card in found.cards(name, spec.kind):
        target = found.default_target(name, card.name) if spec.kind == "guider" else None
        more = {"plugin": found.provider(card).name, "default_target": target and target.text}
        described["checkpoints"].append({**attrs.asdict(card), **more})
    described["experts"] = [
        {**attrs.asdict(bundle), "plugin": found.provider(bundle).name}
        for bundle in found.bundles(**{spec.kind: spec.name})
    ]
    return described


def _options(found: Registry, spec: ComponentSpec) -> list[dict[str, Any]] | str:
    """Each option of a component, or why they are unknown."""
    try:
        options_class = found.options_class(spec)
    except PluginError as error:
        return error.message
    _, _, described = inspect.cleandoc(getattr(options_class, "__doc__", "") or "").partition(
        "\nAttributes:\n"
    )
    helps = dict(_DESCRIBED.findall(described))
    return [
        {
            "name": field.alias,
            "type": getattr(field.type, "__name__", str(field.type)),
            "default": "required" if field.default is attrs.NOTHING else repr(field.default),
            "help": " ".join(helps.get(field.name, "").split()),
        }
        for field in (attrs.fields(options_class) if options_class else ())
        if field.init
    ]


def _unknown(name: str, found: Registry) -> PluginError:
    known = {spec.name for record in found.records for spec in record.specs}
    known |= {record.distribution for record in found.records}
    supplier, near = suppliers().get(name), difflib.get_close_matches(split(name)[1], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`ppap plugins list` shows what there is"
    if supplier and supplier not in known:
        hint = f"pip install {supplier}"
    return PluginError(f"no component and no plugin is called {name!r}", hint=hint)


def _probe(script: str, *arguments: str) -> Any:
    """The JSON that a script prints, or its error; in another process, which may crash."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # a torch.py in this folder is not torch
        )
        return json.loads(probe.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().rpartition("\n")[2] or "nothing was said"
        return {"error": f"importing torch ended with exit code {error.returncode}: {said}"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    except (IndexError, ValueError):
        return {"error": f"importing torch ended early, after printing {probe.stdout!r:.80}"}


def _faulty_bundles() -> list[dict[str, Any]]:
    """Rows of `ppap experts list` with a problem; in another process, since it imports torch."""
    listing = [sys.executable, "-m", "ppap_framework", "experts", "list", "--json"]
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        done = subprocess.run(listing, capture_output=True, timeout=_PROBE_SECONDS, check=False)
        return [row for row in json.loads(done.stdout) if row["path"] and row["problem"]]
    return []


def _caches() -> dict[str, int]:
    """Bytes of folders of weights: the project's, and those of libraries that plugins use."""
    get = os.environ.get
    shared = Path(get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = get("HF_HUB_CACHE") or Path(get("HF_HOME") or shared / "huggingface", "hub")
    sizes = {}
    for folder in (cache_dir(), Path(hub), Path(get("TORCH_HOME") or shared / "torch")):
        sizes[str(folder)] = 0
        for file in (Path(parent, name) for parent, _, names in os.walk(folder) for name in names):
            with contextlib.suppress(OSError):
                if file.is_file() and not file.is_symlink():
                    sizes[str(folder)] += file.stat().st_size
    return sizes


def _print(report: dict[str, Any], found: Registry) -> None:
    shown = {key: report[key] for key in ("python", "torch", "environment", "caches", "commands")}
    print_fields(f"ppap {report['ppap']}", shown)
    loaded = []
    for record, known in zip(found.records, report["plugins"], strict=True):
        assets = [f"{kind} {name}" for key, (kind, *_) in _ASSETS.items() for name in known[key]]
        if record.status == "ok":
            supplied = ", ".join([*known["components"], *assets])
            loaded.append((record.name, record.version, supplied))
    if loaded:
        print_table(["loaded", "version", "supplies"], loaded)
    _print_idle(found.records)
    for record in found.records:
        if record.error is not None:
            click.secho(f"{record.name}, {record.status}:", bold=True)
            click.echo(record.traceback)
    for fault in report["faults"]:
        click.echo(f"fault: {fault}")
    for conflict in report["conflicts"]:
        taken, claims = conflict["taken"], ", ".join(conflict["claims"])
        outcome = f"{taken} is taken" if taken else "asking for it is an error"
        click.echo(f"conflict: {conflict['subject']} of {claims}; {outcome}")
    if report["experts"]:
        print_table(
            ["experts that cannot be attached", "path", "problem"],
            [(row["name"], row["path"], row["problem"]) for row in report["experts"]],
        )
    for variable, name in found.unknown_names:
        click.echo(f"warning: {variable} names {name!r}, and no such plugin is installed")
