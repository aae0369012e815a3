"""`ppap plugins check`, `ppap new` and `ppap schema`."""

from __future__ import annotations

from typing import Any

import click

from ppap_framework.cli.config import plug_in
from ppap_framework.cli.output import json_option, print_json, print_table

__all__ = ["check", "new", "schema"]


@click.command("check")
@click.argument("name")
@click.option("--checkpoint", metavar="NAME|PATH", help="Weights of a backend or guider.")
@click.option("--target", metavar="TARGET", help="Target of a guider without a default one.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Its options.")
@click.option(
    "--plugin-file",
    metavar="PATH",
    callback=plug_in,
    expose_value=False,
    help="A Python file as a plugin.",
)
@json_option
def check(
    name: str, checkpoint: str | None, target: str | None, options: tuple[str, ...], as_json: bool
) -> int:
    """Check that a component keeps what the framework expects of it.

    NAME is the name of a component, as "distribution:name" if several distributions claim it, or a
    distribution, whose components are all checked. Exits with 3 if a check fails.

    \b
    ppap plugins check edges --target 0.3
    ppap plugins check my-guider --plugin-file ./my_guider.py --target 0.3
    """
    import attrs

    from ppap_framework.cli.guide_options import typed_pairs
    from ppap_testing.checking import components_of, suite_of
    from ppap_testing.suite import run_checks

    shown, failed = [], False
    for kind, component in components_of(name):
        given = typed_pairs("--option", options, component, kind)
        suite = suite_of(kind, component, options=given, checkpoint=checkpoint, target=target)
        outcomes = list(run_checks(suite))
        faults = [outcome for outcome in outcomes if outcome.status == "failed"]
        failed = failed or bool(faults)
        if as_json:
            checks = [attrs.asdict(outcome) for outcome in outcomes]
            shown.append({"kind": kind, "name": component, "ok": not faults, "checks": checks})
            continue
        rows: list[Any] = [
            (o.what, o.status, o.fault if o.status == "skipped" else "") for o in outcomes
        ]
        print_table((f"{kind} {component}", "result", "why"), rows)
        for fault in faults:
            click.echo(f"failed: {fault.what}\n  {fault.fault}")
            if fault.advice:
                click.echo(f"  what to do: {fault.advice}")
    if as_json:
        print_json(shown)
    return 3 * failed


@click.command("new")
@click.argument("kind", type=click.Choice(["guider", "backend", "loss", "adapter"]))
@click.argument("name")
@click.option("--minimal", is_flag=True, help="One file, to be used with --plugin-file.")
@click.option("--out", default=".", metavar="FOLDER", help="Where to write; by default here.")
def new(kind: str, name: str, minimal: bool, out: str) -> None:
    """Write a plugin that works: a package with tests, or one file.

    NAME is the name of the component, such as edges. Prints the path, and what to type next.

    \b
    ppap new guider edges
    ppap new guider edges --minimal
    """
    from ppap_testing.packages import write_file, write_package

    path = (write_file if minimal else write_package)(kind, name, out)
    click.echo(path)
    module = f"--plugin-file {path}"
    aimed = "--target 0.1 --through detached --scale 10000"
    use = {
        "guider": f"ppap run {module} --backend adm --guider {name} {aimed}",
        "backend": f"ppap run {module} --backend {name}",
        "loss": f"ppap run {module} --backend adm --guider classifier --loss {name}",
        "adapter": f"ppap adapt {module} --backend adm --guider classifier --adapter {name}",
    }
    package = f"cd {path} && pip install -e '.[test]' && pytest"
    click.echo(f"ppap: try it: {use[kind] if minimal else package}", err=True)


@click.command("schema")
def schema() -> None:
    """Print the JSON schema of ppap.toml, for an editor that completes and checks it.

    It is made of the options of this installation's commands, and of the components and their
    options that are installed. Editors with Taplo read it if the first line of ppap.toml is
    `#:schema ./ppap.schema.json`.

    \b
    ppap schema > ppap.schema.json
    """
    from ppap_testing.schema import schema_of

    print_json(schema_of())
