"""The pages on sharing and its cost: their commands exist as they are written, and their numbers
are those of the record.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from ppap_framework.cli import ppap

DOCS = Path(__file__).parents[3] / "docs"
COMMAND = re.compile(r"(?:\bppap|-m ppap_framework) ((?:experts|data|transfer|synth|jobs).*)")
PAGE = (DOCS / "sharing.md").read_text(encoding="utf-8")


def commands() -> Iterator[list[str]]:
    """The words of each command of the page, without `ppap`."""
    text = re.sub(r"\\\n\s*", " ", "\n".join(re.findall(r"^    (.*)$", PAGE, re.MULTILINE)))
    for line in text.splitlines():
        if match := re.search(
            r"(?:\bppap|-m ppap_framework) ((?:experts|data|transfer|synth|jobs).*)", line
        ):
            words = match[1].split('"')[0].replace("$(", "").replace("))", "")
            yield shlex.split(words, comments=True)
    for manifest in manifests():
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        words = container["command"]
        if words[0] != "ppap":
            words = words[-1].partition("-m ppap_framework")[2].split()
            yield words
        else:
            yield words[1:]


def manifests() -> list[dict]:
    text = "\n".join(re.findall(r"^    (.*)$", PAGE.partition("### Kubernetes")[2], re.MULTILINE))
    return [*yaml.safe_load_all(text)]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_every_command_is_there(words: list[str]) -> None:
    group: click.Command = ppap
    while isinstance(group, click.Group):
        name, *words = words
        found = group.get_command(click.Context(group), name)
        if found is None and name in ("jobs", "merge"):
            pytest.skip("another plugin has it")
        assert found is not None, name
        group = found
    options = {option for parameter in group.params for option in parameter.opts}
    options |= {o for parameter in group.params for o in parameter.secondary_opts}
    given = {word for word in words if word.startswith("--")}
    assert given <= options
    assert len(given) or words


def test_there_are_such_commands() -> None:
    found = [" ".join(words[:2]) for words in commands()]
    for name in ("experts push", "experts pull", "data push", "data merge", "experts merge"):
        assert name in found
    assert sum("--experts-of" in words for words in commands()) == 2
    assert [manifest["metadata"]["name"] for manifest in manifests()] == ["ppap-draw", "ppap-train"]


def test_the_cost_is_that_of_the_record() -> None:
    made = runpy.run_path(str(DOCS / "make_cost.py"))
    record = json.loads((DOCS / "cost" / "full-recipe.json").read_text())
    page = (DOCS / "cost.md").read_text(encoding="utf-8")
    assert "\n".join(made["lines"](record)) in page


def test_the_arithmetic_of_the_cost() -> None:
    """By hand, for round numbers."""
    made = runpy.run_path(str(DOCS / "make_cost.py"))
    unit = {"flops": 10**9, "cpu_seconds": 1.0}
    names = {"backend": "adm-256-uncond", "guide": "g", "processor": "p", "torch": "t"}
    record = {**names, "denoiser": unit, "teacher": unit, "student": unit}
    text = "\n".join(made["lines"](record))
    looks = 500_000 * 25 + 500_000 + 300_000 * 256
    hours = looks * 1e9 / 312e12 / 0.3 / 8 / 3600
    [row] = [line for line in text.splitlines() if line.startswith("| together | 8 |")]
    assert float(row.split("|")[4]) == pytest.approx(hours, rel=0.05)
