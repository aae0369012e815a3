"""Every page: its commands exist, and its links lead somewhere."""

from __future__ import annotations

import importlib
import re
from typing import Any

import click
import pages
import pytest
from distributions import REPOSITORY
from pages import DOCS, PAGES

from ppap_framework.cli import ppap
from ppap_framework.cli.groups import GlobalOptions

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for file, anchor in pages.links(REPOSITORY / name):
        assert file.exists(), f"{name} links to {file}"
        if anchor and file.suffix == ".md":
            assert anchor in pages.anchors(file), f"{name} links to {file}#{anchor}"


def test_every_page_is_in_the_contents() -> None:
    entries = re.findall(r"(?m)^(?:.* <)?([\w/-]+)>?$", (DOCS / "index.md").read_text())
    names = {str(p.relative_to(DOCS).with_suffix("")) for p in PAGES if DOCS in p.parents}
    assert names - {"index"} <= set(entries)


def _added(name: str) -> click.Command | None:
    """A command of a plugin of this repository, even if it is not installed."""
    for project in REPOSITORY.glob("plugins/*/pyproject.toml"):
        _, _, rest = project.read_text().partition('[project.entry-points."ppap.commands"]')
        section = rest.partition("\n[")[0]
        for key, target in re.findall(r'"?([\w.]+)"? = "([\w.]+:\w+)"', section):
            if key == name.removeprefix("ppap."):
                module, _, attribute = target.partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
    return None


def _check(arguments: list[str]) -> None:
    """A command exists, takes its options, and their values are possible."""
    command: click.Command = ppap
    context = click.Context(ppap, info_name="ppap", obj=GlobalOptions())
    while isinstance(command, click.Group):
        while arguments and arguments[0] in ("-v", "-q", "--debug"):
            arguments = arguments[1:]
        if not arguments or arguments[0].startswith("-"):
            return
        name, *arguments = arguments
        found = command.get_command(context, name) or _added(f"{command.name}.{name}")
        assert found is not None, f"there is no command {name!r}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    given, _, _ = command.make_parser(context).parse_args(list(arguments))
    for parameter in command.params:
        simple = isinstance(parameter.type, click.Choice | click.types.IntParamType)
        for value in pages_values(given.get(parameter.name or "")) if simple else ():
            parameter.type.convert(value, parameter, context)


def pages_values(value: Any) -> list[Any]:
    """What was given for an option, perhaps several times; placeholders such as N are left out."""
    every = value if isinstance(value, list) else [value]
    return [one for one in every if isinstance(one, str) and not one.isupper()]


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    for arguments in pages.ppap_commands(REPOSITORY / name):
        _check(arguments)


def test_wrong_commands_are_noticed() -> None:
    for wrong in (["rune"], ["adapt", "--target", "0.8"], ["run", "--sampler", "euler"]):
        with pytest.raises((click.UsageError, AssertionError)):
            _check(wrong)
