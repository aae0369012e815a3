"""The examples of the page on sharing: their manifests can be read, their options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import yaml

from ppap_framework.cli import ppap

PAGE = Path(__file__).parents[3] / "docs" / "sharing.md"


def examples() -> tuple[list[str], list[dict[str, Any]]]:
    """The lines of Slurm's scripts, and the manifests of Kubernetes."""
    text = PAGE.read_text(encoding="utf-8").partition("### Slurm")[2]
    scripts, manifests = (
        "\n".join(re.findall(r"^    (.*)$", part, re.MULTILINE))
        for part in text.split("### Kubernetes")
    )
    return scripts.replace("\\\n", " ").splitlines(), [*yaml.safe_load_all(manifests)]


def test_the_commands_of_the_examples_have_these_options() -> None:
    lines, manifests = examples()
    for manifest in manifests:
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        lines += re.split(r"&&|\|\|", container["command"][-1])
    seen = []
    for line in lines:
        if match := re.search(r"\bppap ((?:data|experts|synthesize|transfer) .*)", line):
            group: click.Command = ppap
            words = shlex.split(match[1])
            while isinstance(group, click.Group):
                found = group.get_command(click.Context(group), words.pop(0))
                assert found is not None, line
                group = found
            options = {option for parameter in group.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, line
            seen.append(group.name)
    assert sorted(seen) == sorted(["synthesize", "merge", "transfer"] * 2 + ["push"] * 2)


def test_the_images_are_those_of_the_paper() -> None:
    lines, manifests = examples()
    [tasks] = [int(n) + 1 for line in lines for n in re.findall(r"--array=0-(\d+)", line)]
    [each] = [int(n) for line in lines for n in re.findall(r"--num (\d+)", line)]
    assert 500_000 <= tasks * each < 500_000 + tasks
    assert manifests[0]["spec"]["completions"] == tasks
