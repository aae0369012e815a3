"""The Markdown pages of this repository: their commands, their programs, and their links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from distributions import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [
    *sorted(path for path in REPOSITORY.glob("*.md")),
    *sorted(p for p in DOCS.rglob("*.md") if not {"_build", "generated"} & {*p.parts}),
    *sorted(REPOSITORY.glob("plugins/*/README.md")),
    *sorted(REPOSITORY.glob("release/*.md")),
    *sorted(REPOSITORY.glob("tests/parity/*.md")),
]

_BLOCK = re.compile(
    r"(?m)^#+ `(?P<file>[^`]+)`\n\n```\w+\n(?P<content>(?s:.*?))^```$"
    r"|^```(?P<language>\S*)\n(?P<program>(?s:.*?))^```$"
    r"|(?P<typed>^ {4}[^\n]*\n(?:(?: {4}[^\n]*)?\n)*)"
)
_TYPED = re.compile(
    r"(ppap|pip|pytest|python|torchrun|accelerate|cd|mkdir|touch|[A-Z_]+=\S+ ppap) "
)
_ELSEWHERE = re.compile(  # what is already there, and what a network or other machines have
    r"pip install (\"?ppap-|-e \"?\.\[demo)|-uncond|glide-|clip-|siglip|resnet|vit_|deit|mine\."
    r"|PATH|FOLDER|multi_experts|experts import|checkpoints (download|convert|info|where)|my\.png"
    r"|--checkpoint (adm-|~)|--guider flow|OWNER|BUNDLE|s3:|--nnodes"
)
_SHORTER = {
    "run": {"--num": 2, "--steps": 10},
    "adapt": {"--num": 64, "--iterations": 50},
    "transfer": {"--iterations": 50},
    "synthesize": {"--num": 64},
    "diagnose": {"--num": 16, "--levels": 3},
}
"""Numbers that suffice to see that a command works, which replace larger ones."""


def blocks(page: Path) -> Iterator[re.Match[str]]:
    """Files, programs and indented blocks, in order."""
    return _BLOCK.finditer(page.read_text(encoding="utf-8"))


def typed(page: Path) -> list[str]:
    """The lines that a page shows to be typed, without comments."""
    found = []
    for block in blocks(page):
        text = (block["typed"] or "").replace("\\\n", " ")
        lines = re.findall(r"(?m)^ {4}(\S.*)$", text)  # deeper lines belong to something else
        lines = [re.sub(r" +# .*", "", " ".join(line.split())) for line in lines]
        found += [line for line in lines if _TYPED.match(f"{line} ")]
    return found


def _shortened(line: str) -> str:
    named = re.search(r"\bppap(?:_framework)? (\w+) .*--backend ", line)
    for option, number in _SHORTER.get(named[1] if named else "", {}).items():
        given = re.search(rf"{option} (\d+)", line)
        if given is None or int(given[1]) > number:
            line += f" {option} {number}"
    return line.replace(" /shared/", " shared/").replace("per-node 4", "per-node 2")


def script(page: Path) -> str:
    """What a reader of a page does, as a program of bash: what takes long is shortened, and what
    needs a download is left out.
    """
    made = ["set -eu"]
    for number, block in enumerate(blocks(page)):
        if block["file"]:
            made += [f"mkdir -p $(dirname {block['file']})", f"cat > {block['file']} <<'END'"]
            made += [block["content"] + "END"]
        elif block["language"] == "python" and "OWNER/" not in block["program"]:
            made += [f"cat > program{number}.py <<'END'", block["program"] + "END"]
            made += [f"python program{number}.py"]
        elif block["typed"]:
            text = block["typed"].replace("\\\n", " ")
            lines = re.findall(r"(?m)^ {4}(\S.*)$", text)
            lines = [re.sub(r" +# .*", "", " ".join(line.split())) for line in lines]
            wanted = [x for x in lines if _TYPED.match(f"{x} ") and not _ELSEWHERE.search(x)]
            made += [_shortened(line) for line in wanted]
    return "\n".join(made) + "\n"


def follow(page: Path, folder: Path, python: Path | str = sys.executable) -> str:
    """Do what a page says, in a folder of its own; what was printed on stderr. AssertionError if
    a command fails.
    """
    bin_, home = folder / "bin", folder / "home"
    for path in (bin_, home):
        path.mkdir()
    programs = {
        "ppap": "-m ppap_framework",
        "torchrun": "-m torch.distributed.run",
        "accelerate": "-m accelerate.commands.accelerate_cli",
        "python": "",
    }
    for name, words in {**programs, "pytest": "-m pytest", "pip": "-m pip"}.items():
        (bin_ / name).write_text(f'#!/bin/sh\nexec {python} {words} "$@"\n')
        (bin_ / name).chmod(0o755)
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PPAP_")}
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=home,
        env={
            **plain,
            "PATH": f"{bin_}{os.pathsep}{plain['PATH']}",
            "PPAP_CACHE_DIR": str(folder / "cache"),
            # pip builds with what is here: its own word for "no isolation" is 0.
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_QUIET": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stderr


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
