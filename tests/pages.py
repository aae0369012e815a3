"""The Markdown pages of this repository: their commands, their programs, and their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from distributions import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [
    *sorted(path for path in REPOSITORY.glob("*.md")),
    *sorted(p for p in DOCS.rglob("*.md") if not {"_build", "generated"} & {*p.parts}),
    *sorted(REPOSITORY.glob("plugins/*/README.md")),
]

_BLOCK = re.compile(
    r"(?m)^#+ `(?P<file>[^`]+)`\n\n```\w+\n(?P<content>(?s:.*?))^```$"
    r"|^```(?P<language>\S*)\n(?P<program>(?s:.*?))^```$"
    r"|(?P<typed>^ {4}[^\n]*\n(?:(?: {4}[^\n]*)?\n)*)"
)
_TYPED = re.compile(r"(ppap|pip|pytest|python|cd|mkdir|touch|[A-Z_]+=\S+ ppap) ")


def blocks(page: Path) -> Iterator[re.Match[str]]:
    """Files, programs and indented blocks, in order."""
    return _BLOCK.finditer(page.read_text(encoding="utf-8"))


def typed(page: Path) -> list[str]:
    """The lines that a page shows to be typed, without comments."""
    found = []
    for block in blocks(page):
        text = (block["typed"] or "").replace("\\\n", " ")
        lines = [re.sub(r" +# .*", "", " ".join(line.split())) for line in text.splitlines()]
        found += [line for line in lines if _TYPED.match(f"{line} ")]
    return found


def ppap_commands(page: Path) -> list[list[str]]:
    """The arguments of every `ppap ...` that is typed."""
    words = (shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", line)) for line in typed(page))
    return [arguments for command, *arguments in words if command == "ppap"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The file and the anchor of each link within the repository, outside of code."""
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]+`|^ {4}[^\n]*$", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor
