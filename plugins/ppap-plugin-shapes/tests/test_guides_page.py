"""docs/guides.md is followed: its files are made, its commands typed, its messages compared. The
runs that the README and the gallery show are typed, too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ppap_framework.cli import main

for name in (
    "classifier",
    "clip",
    "detection",
    "diffusers",
    "fashion",
    "likeness",
    "midas",
    "segmentation",
):
    pytest.importorskip(f"ppap_plugin_{name}", reason="a guider of the page")

PROJECT = Path(__file__).parents[3]
PAGE = (PROJECT / "docs" / "guides.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
FIRST = (PROJECT / "README.md").read_text(encoding="utf-8")
GALLERY = (PROJECT / "docs" / "index.md").read_text(encoding="utf-8")
FAILURES = re.findall(r"    \$ (ppap .*)\n    (ppap: error: .*)\n    (hint: .*)", PAGE)


ELSEWHERE = re.compile("--guider (clip-text --guider-model|flow|structure|style .*structure)")
"""Guides whose weights are on a hub; their plugins try their commands."""


def commands(page: str) -> list[str]:
    """The runs that a page shows, each on one line."""
    lines = page.replace("\\\n", " ").splitlines()
    found = [line.split("#")[0].strip() for line in lines if line.startswith("    ppap run ")]
    return [command for command in found if not ELSEWHERE.search(command)]


BACKENDS = ("shapes-adm", "shapes-glide", "shapes-latent", "fashion-adm")
Typed = Callable[[str], tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the page's files."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(PROGRAMS[0], "guides.md", "exec"), {})
    return folder


@pytest.fixture
def typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Types a command there."""
    monkeypatch.chdir(folder)

    def type_(command: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(command)[1:])
        code = caught.value.code
        assert isinstance(code, int)
        return (code, *capsys.readouterr())

    return type_


def test_there_is_something_to_follow() -> None:
    assert (len(PROGRAMS), len(commands(PAGE)), len(FAILURES)) == (2, 26, 3)
    assert (len(commands(FIRST)), len(commands(GALLERY))) == (7, 10)


@pytest.mark.parametrize("command", [*commands(PAGE), *commands(FIRST), *commands(GALLERY)])
def test_commands(typed: Typed, command: str) -> None:
    code, out, err = typed(f"{command} --dry-run")
    assert code == 0, err
    assert any(name in out for name in BACKENDS)


@pytest.mark.parametrize(("command", "error", "hint"), FAILURES)
def test_messages(typed: Typed, command: str, error: str, hint: str) -> None:
    code, out, err = typed(command)
    assert (code, out) == (2, "")
    assert err.splitlines() == [error, hint]


def test_the_python_program(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PROGRAMS[1], "guides.md", "exec"), {})
    assert capsys.readouterr().out.count("tensor(") == 2
