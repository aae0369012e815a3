"""`ppap plugins`: what is installed, answered from records; it works whatever plugin is broken."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal

import attrs
import click

from ppap_framework.cli.output import print_fields, print_json, print_table
from ppap_framework.errors import PluginError
from ppap_framework.plugin import (
    BackendSpec,
    Card,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
    GuiderSpec,
)
from ppap_framework.registry import (
    PluginRecord,
    Registry,
    normal,
    registry,
    split,
    suppliers,
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Show what is installed."""


@command.command("list")
@as_json
def list_plugins(as_json: bool) -> None:
    """List every component, and the plugins that are not loaded."""
    found = registry()
    components = [(record, spec) for record in found.records for spec in record.specs]
    if as_json:
        print_json(
            {
                "components": [summarise(record, spec) for record, spec in components],
                "plugins": [describe_plugin(record) for record in found.records],
            }
        )
        return
    if components:
        print_table(
            ["kind", "name", "plugin", "version", "summary"],
            [
                (spec.kind, spec.name, record.name, record.version or "?", spec.summary)
                for record, spec in components
            ],
        )
    else:
        click.echo("No component is installed; `pip install ppap-framework[demo]` brings some.")
    print_idle(found.records)


@command.command("info")
@click.argument("name")
@as_json
def info(name: str, as_json: bool) -> None:
    """Show everything about a component or a plugin.

    NAME is that of a component, a distribution or an entry point, or two of them joined as
    "distribution:name".
    """
    found = registry()
    components, plugins = _matching(found, name)
    if not components and not plugins:
        raise _unknown(name, found)
    described = [describe_component(found, record, spec) for record, spec in components]
    if as_json:
        print_json(
            {"components": described, "plugins": [describe_plugin(record) for record in plugins]}
        )
        return
    for component in described:
        _print_component(component)
    for record in plugins:
        described_plugin = describe_plugin(record)
        trace = described_plugin.pop("traceback")
        print_fields(f"plugin {record.name}", described_plugin)
        click.echo(trace, nl=False)


def summarise(record: PluginRecord, spec: ComponentSpec) -> dict[str, Any]:
    """A component in a few words."""
    return {
        "kind": spec.kind,
        "name": spec.name,
        "plugin": record.name,
        "version": record.version,
        "summary": spec.summary,
    }


def describe_component(
    found: Registry, record: PluginRecord, spec: ComponentSpec
) -> dict[str, Any]:
    """Everything that is known of a component; imports its options class, and that alone."""
    described = {**summarise(record, spec), **attrs.asdict(spec)}
    described["options"] = _options(found, spec)
    if isinstance(spec, BackendSpec | GuiderSpec):
        described["checkpoints"] = _checkpoints(found, record, spec)
        described["experts"] = _experts(found, spec)
    return described


def describe_plugin(record: PluginRecord) -> dict[str, Any]:
    """Everything that is known of a plugin."""
    return {
        "plugin": record.name,
        "version": record.version,
        "module": record.module,
        "status": record.status,
        "reason": record.reason,
        "hint": record.hint,
        "components": [f"{spec.kind} {spec.name}" for spec in record.specs],
        "checkpoints": [asset.name for asset in record.assets if isinstance(asset, Card)],
        "experts": [asset.name for asset in record.assets if isinstance(asset, ExpertBundle)],
        "default_targets": [
            f"{asset.text!r} for {asset.guider} with {asset.checkpoint}"
            for asset in record.assets
            if isinstance(asset, DefaultTarget)
        ],
        "traceback": record.traceback,
    }


def print_idle(records: Iterable[PluginRecord]) -> None:
    """A table of the plugins that supply nothing, and why; nothing where there are none."""
    idle = [record for record in records if record.status != "ok"]
    if idle:
        print_table(
            ["not loaded", "version", "status", "reason", "hint"],
            [(r.name, r.version or "?", r.status, r.reason, r.hint) for r in idle],
        )


def _options(found: Registry, spec: ComponentSpec) -> list[dict[str, Any]] | str:
    """Each option of a component, or why they cannot be told."""
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


def _checkpoints(
    found: Registry, record: PluginRecord, spec: BackendSpec | GuiderSpec
) -> list[dict[str, Any]]:
    kind: Literal["backend", "guider"] = "backend" if isinstance(spec, BackendSpec) else "guider"
    described, name = [], f"{record.distribution}:{spec.name}"
    for card in found.cards(name, kind):
        target = found.default_target(name, card.name) if kind == "guider" else None
        described.append(
            {
                **attrs.asdict(card),
                "plugin": found.provider(card).name,
                "default_target": target.text if target else None,
            }
        )
    return described


def _experts(found: Registry, spec: BackendSpec | GuiderSpec) -> list[dict[str, Any]]:
    """The bundles that distributions offer for a guider, or from images of a backend."""
    offered = (
        found.bundles(backend=spec.name)
        if isinstance(spec, BackendSpec)
        else found.bundles(guider=spec.name)
    )
    return [{**attrs.asdict(asset), "plugin": found.provider(asset).name} for asset in offered]


def _matching(
    found: Registry, name: str
) -> tuple[list[tuple[PluginRecord, ComponentSpec]], list[PluginRecord]]:
    """The components and the plugins that a name means."""
    distribution, bare = split(name)
    components = [
        (record, spec)
        for record in found.records
        for spec in record.specs
        if spec.name == bare and distribution in (None, record.distribution)
    ]
    plugins = [
        record
        for record in found.records
        if (record.entry_point == bare and distribution in (None, record.distribution))
        or (distribution is None and record.distribution == normal(bare))
    ]
    return components, plugins


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
    checkpoints, experts = fields.pop("checkpoints", []), fields.pop("experts", [])
    if isinstance(options, str):
        fields["options"] = options
        options = []
    print_fields(title, fields)
    for option in options:
        default = option["default"]
        unless = default if default == "required" else f"default {default}"
        click.echo(f"  option {option['name']}: {option['type']}, {unless}")
    file = ["size", "licence", "uri"]
    for card in checkpoints:
        told = ["summary", "plugin", "default", "default_target", "image_size", *file]
        print_fields(f"checkpoint {card['name']}", {name: card[name] for name in told})
    for bundle in experts:
        told = ["summary", "plugin", "guider", "backend", *file]
        print_fields(f"experts {bundle['name']}", {name: bundle[name] for name in told})
