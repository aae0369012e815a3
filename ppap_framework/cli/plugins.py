"""`ppap plugins`, read from records, so it works if a plugin is broken; imports no torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import attrs
import click

from ppap_framework.cli.groups import Group
from ppap_framework.cli.output import json_option, print_fields, print_json, print_table, size_words
from ppap_framework.errors import PluginError, did_you_mean
from ppap_framework.plugin import Asset, Card, ComponentSpec, DefaultTarget, ExpertBundle
from ppap_framework.registry import PluginRecord, Registry, normal, registry, split, suppliers
from ppap_framework.registry.options import fields_of, type_name

_TARGET = "{0.text!r} for {0.guider} with {0.checkpoint}"
ASSETS: dict[str, tuple[str, type[Asset], str]] = {
    "checkpoints": ("checkpoint", Card, "{0.name}"),
    "experts": ("experts", ExpertBundle, "{0.name}"),
    "default_targets": ("default target", DefaultTarget, _TARGET),
}
_DESCRIBED = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
"""An attribute and its description, in a docstring."""


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
        print_json({"components": components, "plugins": [*map(plugin_record, records)]})
        return
    if components:
        print_table(["kind", "name", "plugin", "version", "summary"], components)
    else:
        click.echo("No component is installed; `pip install ppap-framework[demo]` brings some.")
    print_idle(records)


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
    meant = (r for r in named if r.entry_point == bare or r.distribution in projects)
    plugins = [*map(plugin_record, meant)]
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
    print_table(["option", "type", "default", "help"], [option.values() for option in options])
    for key, rows in assets.items():
        for row in rows:
            row[key] = row["name"] + (" (default)" if row.get("default") else "")
            row["size"] = size_words(row["size"])
        print_table([key, "size", "licence", "summary", "uri"], rows)


def plugin_record(record: PluginRecord) -> dict[str, Any]:
    """Everything known of a plugin, JSON."""
    fields = ("version", "module", "status", "reason", "hint")
    return {
        "plugin": record.name,
        **{field: getattr(record, field) for field in fields},
        "components": [f"{spec.kind} {spec.name}" for spec in record.specs],
        **{
            key: [name.format(asset) for asset in record.assets if isinstance(asset, kind)]
            for key, (_, kind, name) in ASSETS.items()
        },
        "traceback": record.traceback,
    }


def print_idle(records: Iterable[PluginRecord]) -> None:
    """Print a table of the plugins that supply nothing, and why."""
    idle = [(r.name, r.version, r.status, r.reason, r.hint) for r in records if r.status != "ok"]
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
    helps: dict[str, str] = {}
    for cls in reversed(options_class.__mro__ if options_class else ()):
        _, _, described = f"\n{inspect.cleandoc(cls.__doc__ or '')}".partition("\nAttributes:\n")
        helps |= _DESCRIBED.findall(described)
    return [
        {
            "name": name,
            "type": type_name(field.type),
            "default": "required" if field.default is attrs.NOTHING else repr(field.default),
            "help": " ".join(helps.get(field.name, "").split()),
        }
        for name, field in fields_of(options_class).items()
    ]


def _unknown(name: str, found: Registry) -> PluginError:
    known = {spec.name for record in found.records for spec in record.specs}
    known |= {record.distribution for record in found.records}
    supplier, question = suppliers().get(name), did_you_mean(split(name)[1], known)
    hint = question or "`ppap plugins list` shows what there is"
    if supplier and supplier not in known:
        hint = f"pip install {supplier}"
    return PluginError(f"no component and no plugin is called {name!r}", hint=hint)
