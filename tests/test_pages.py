"""Every page is followed: its commands exist, its links lead somewhere, and what a tutorial, a
how-to page and the README show is typed and run.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import click
import pages
import pytest
from distributions import REPOSITORY
from pages import DOCS, PAGES

from ppap_framework import sample
from ppap_framework.cli import ppap
from ppap_framework.cli.groups import GlobalOptions
from ppap_framework.experts import BundleInfo
from ppap_testing import FakeBackend

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
FOLLOWED = [
    *(f"tutorial/{name}.md" for name in ("first-picture", "own-classifier", "write-a-guider")),
    *(f"howto/{name}.md" for name in ("run", "data", "diagnose", "plugins", "measure")),
    *("plugins.md", "plugins/losses.md", "plugins/backends.md", "plugins/adapters.md"),
    *("plugins/options.md", "plugins/weights.md"),
    "../README.md",
]


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


def test_a_page_is_followed(tmp_path: Path) -> None:
    pages.follow(DOCS / "howto" / "settings.md", tmp_path)
    assert (tmp_path / "home/runs/configured/001.png").exists()
    steps = (tmp_path / "home/runs/variable/run.json").read_text()
    assert '"steps": 5,' in steps


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that sees this one's libraries, and takes others."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    here = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in here]
    (site / "borrowed.pth").write_text("\n".join(lines))
    return environment / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_pages_are_followed(name: str, tmp_path: Path, borrowed: Path) -> None:
    pages.follow((DOCS / name).resolve(), tmp_path, borrowed)


@pytest.mark.slow
def test_the_pages_are_built_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="builds the pages; in the extra docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    done = subprocess.run([*command, DOCS, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def described(part: str) -> set[str]:
    """The names in the first column of a table of the page about files."""
    text = (DOCS / "reference" / "files.md").read_text()
    table = text.partition(f"<!-- {part} -->")[2].partition(f"<!-- end of {part} -->")[0]
    cells = (row.split("|")[1] for row in table.strip().splitlines())
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_fields_of_files_are_described(tmp_path: Path) -> None:
    assert described("bundle") == {field.name for field in attrs.fields(BundleInfo)}
    sample(FakeBackend(), num=1, steps=2).save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described("run") == set(record)
    assert described("config") == set(record["config"])
