"""`ppap plugins`: what is installed, read from records, so it works if a plugin is broken."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import attrs
import click

from ppap_framework.cli.groups import Group
from ppap_framework.cli.output import json_option, print_fields, print_json, print_table
from ppap_framework.errors import PluginError
from ppap_framework.plugin import (
    Asset,
    BackendSpec,
    Card,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
    GuiderSpec,
)
from ppap_framework.registry import PluginRecord, Registry, normal, registry, split, suppliers

_ASSETS: dict[str, type[Asset]] = {
    "checkpoints": Card,
    "experts": ExpertBundle,
    "default_targets": DefaultTarget,
}


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
        plugins = [describe_plugin(record) for record in records]
        print_json({"components": components, "plugins": plugins})
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
    found = registry()
    distribution, bare = split(name)
    components = [
        _describe_component(found, record, spec)
        for record in found.records
        for spec in record.specs
        if spec.name == bare and distribution in (None, record.distribution)
    ]
    plugins = [
        describe_plugin(record)
        for record in found.records
        if (record.entry_point == bare and distribution in (None, record.distribution))
        or (distribution is None and record.distribution == normal(bare))
    ]
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


def describe_plugin(record: PluginRecord) -> dict[str, Any]:
    """Everything known of a plugin, JSON."""
    return {
        "plugin": record.name,
        "version": record.version,
        "module": record.module,
        "status": record.status,
        "reason": record.reason,
        "hint": record.hint,
        "components": [f"{spec.kind} {spec.name}" for spec in record.specs],
        **{
            key: [_name(asset) for asset in record.assets if isinstance(asset, kind)]
            for key, kind in _ASSETS.items()
        },
        "traceback": record.traceback,
    }


def print_idle(records: Iterable[PluginRecord]) -> None:
    """Print a table of the plugins that supply nothing, and why."""
    idle = [(r.name, r.version, r.status, r.reason, r.hint) for r in records if r.status != "ok"]
    if idle:
        print_table(["not loaded", "version", "status", "reason", "hint"], idle)


def _name(asset: Asset) -> str:
    if isinstance(asset, DefaultTarget):
        return f"{asset.text!r} for {asset.guider} with {asset.checkpoint}"
    return asset.name


def _summary(record: PluginRecord, spec: ComponentSpec) -> dict[str, Any]:
    return {
        "kind": spec.kind,
        "name": spec.name,
        "plugin": record.name,
        "version": record.version,
        "summary": spec.summary,
    }


def _describe_component(
    found: Registry, record: PluginRecord, spec: ComponentSpec
) -> dict[str, Any]:
    """Everything known of a component, JSON; imports its options class alone."""
    described = {**_summary(record, spec), **attrs.asdict(spec), "options": _options(found, spec)}
    name = f"{record.distribution}:{spec.name}"
    if isinstance(spec, BackendSpec):
        cards, bundles = found.cards(name, "backend"), found.bundles(backend=spec.name)
    elif isinstance(spec, GuiderSpec):
        cards, bundles = found.cards(name, "guider"), found.bundles(guider=spec.name)
    else:
        return described
    targets = [isinstance(spec, GuiderSpec) and found.default_target(name, c.name) for c in cards]
    described["checkpoints"] = [
        {
            **attrs.asdict(card),
            "plugin": found.provider(card).name,
            "default_target": target.text if target else None,
        }
        for card, target in zip(cards, targets, strict=True)
    ]
    described["experts"] = [
        {**attrs.asdict(bundle), "plugin": found.provider(bundle).name} for bundle in bundles
    ]
    return described


def _options(found: Registry, spec: ComponentSpec) -> list[dict[str, Any]] | str:
    """Each option of a component, or why they are unknown."""
    try:
        options_class = found.options_class(spec)
    except PluginError as error:
        return error.message
    fields = attrs.fields(options_class) if options_class else ()
    return [
        {
            "name": field.alias,
            "type": getattr(field.type, "__name__", str(field.type)),
            "default": "required" if field.default is attrs.NOTHING else repr(field.default),
        }
        for field in fields
        if field.init
    ]


def _unknown(name: str, found: Registry) -> PluginError:
    known = {spec.name for record in found.records for spec in record.specs}
    known |= {record.distribution for record in found.records}
    supplier = suppliers().get(name)
    near = difflib.get_close_matches(split(name)[1], sorted(known), n=1)
    if supplier and supplier not in known:
        hint = f"pip install {supplier}"
    else:
        hint = f"did you mean {near[0]!r}?" if near else "`ppap plugins list` shows what there is"
    return PluginError(f"no component and no plugin is called {name!r}", hint=hint)


def _print_component(described: dict[str, Any]) -> None:
    fields = dict(described)
    title = f"{fields.pop('kind')} {fields.pop('name')}"
    fields["licence"] = fields["licence"] or "not stated"
    options = fields.pop("options")
    if isinstance(options, str):
        fields["options"], options = options, []
    assets = [("checkpoint", card) for card in fields.pop("checkpoints", [])]
    assets += [("experts", bundle) for bundle in fields.pop("experts", [])]
    print_fields(title, fields)
    for option in options:
        default = option["default"]
        unless = default if default == "required" else f"default {default}"
        click.echo(f"  option {option['name']}: {option['type']}, {unless}")
    shown = ["summary", "plugin", "default", "default_target", "image_size", "guider", "backend"]
    for kind, asset in assets:
        rows = {key: asset.get(key) for key in [*shown, "size", "licence", "uri"]}
        print_fields(f"{kind} {asset['name']}", rows)
