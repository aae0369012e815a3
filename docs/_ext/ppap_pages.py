"""What these pages need beyond Sphinx: pages from elsewhere in the repository and from the
installed plugins, links that work on GitHub too, and formulas without a script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

_log = logging.getLogger(__name__)

DOCS = Path(__file__).parents[1]
REPOSITORY = DOCS.parent
GITHUB = "https://github.com/ppap-framework/ppap-framework/blob/main/"
GENERATED = DOCS / "generated"

COPIES = {
    "ARCHITECTURE.md": "architecture",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "tests/parity/README.md": "parity",
    **{
        f"plugins/{path.parent.name}/README.md": f"plugins/{path.parent.name}"
        for path in sorted(REPOSITORY.glob("plugins/*/README.md"))
    },
}
"""Pages that lie elsewhere in the repository, and their names below `generated`."""

_LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
_CODE = re.compile(r"(?ms)^( *)(`{3,}|~{3,}).*?^\1\2|`[^`\n]+`|^(?: {4}[^\n]*\n)+")


def links(text: str) -> Iterator[re.Match[str]]:
    """The targets of a Markdown page's links and pictures, outside of code."""
    code = [match.span() for match in _CODE.finditer(text)]
    for match in _LINK.finditer(text):
        if not any(start <= match.start() < end for start, end in code):
            yield match


def _rewritten(text: str, home: PurePosixPath, page: PurePosixPath) -> str:
    """A page's links as they are on the site: `home` is the page's file in the repository, and
    `page` its file on the site, in docs.
    """

    def changed(target: str) -> str:
        if re.match(r"[a-z]+:|#", target):
            return target
        path, hash_, anchor = target.partition("#")
        file = PurePosixPath(os.path.normpath(home.parent / path))
        place = REPOSITORY / file
        if not place.exists():
            _log.warning("%s links to %s, and %s does not exist", home, target, file)
            return target
        if str(file) in COPIES:
            file = PurePosixPath("docs/generated") / f"{COPIES[str(file)]}.md"
        elif str(file) == "README.md":
            file = PurePosixPath("docs/index.md")
            hash_ = anchor = ""
        elif file.parts[0] != "docs" or place.is_dir() or file.suffix in (".json", ".toml", ".py"):
            return f"{GITHUB}{file}{hash_}{anchor}"
        return f"{os.path.relpath(file, page.parent)}{hash_}{anchor}"

    made, end = [], 0
    for match in links(text):
        made += [text[end : match.start()], changed(match[0])]
        end = match.end()
    return "".join([*made, text[end:]])


def _read_source(app: Sphinx, name: str, content: list[str]) -> None:
    page = PurePosixPath("docs") / f"{name}.md"
    if not name.startswith("generated/"):
        content[0] = _rewritten(content[0], page, page)


def _write(name: str, text: str) -> None:
    """Write a generated page, if it differs, so that what has not changed is not read again."""
    path = GENERATED / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def directory() -> str:
    """The plugin directory: every component of the installed plugins, by its record."""
    from ppap_framework.plugin import Card, ComponentSpec, ExpertBundle
    from ppap_framework.registry import registry

    found = registry()
    kinds: dict[str, list[Sequence[str]]] = {}
    weights, experts = [], []
    for record in sorted(found.records, key=lambda record: record.distribution):
        page = f"plugins/{record.distribution}.md"
        home = (
            f"[{record.distribution}]({page})" if (GENERATED / page).exists() else "" + record.name
        )
        for spec in record.specs:
            if isinstance(spec, ComponentSpec):
                row = [f"`{spec.name}`", spec.summary, home, spec.licence or ""]
                kinds.setdefault(spec.kind, []).append(row)
        for asset in record.assets:
            if isinstance(asset, Card):
                size = f"{asset.size / 1e6:,.0f} MB" if asset.size else ""
                row = [f"`{asset.name}`", f"`{asset.component}`", asset.summary, size]
                weights.append([*row, asset.licence, home])
            elif isinstance(asset, ExpertBundle):
                row = [f"`{asset.name}`", f"`{asset.guider}`", f"`{asset.backend}`"]
                experts.append([*row, asset.summary, home])
    columns = ("name", "summary", "plugin", "licence")
    tables = {
        "Backends": (columns, kinds["backend"]),
        "Guiders": (columns, kinds["guider"]),
        "Losses": (columns, kinds["loss"]),
        "Adapters": (columns, kinds["adapter"]),
        "Checkpoints": (("name", "for", "summary", "size", "licence", "plugin"), weights),
        "Experts": (("name", "guider", "backend", "summary", "plugin"), experts),
    }
    lines = [
        "# Plugin directory\n",
        "Everything that the plugins of this repository supply. `ppap plugins list` shows what is",
        "installed, and `ppap plugins info NAME` all about one of them. This page is made from",
        "the plugins' records.\n",
    ]
    for title, (head, rows) in tables.items():
        lines += [f"## {title}\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows]
        lines.append("")
    pages = [name for name in COPIES.values() if name.startswith("plugins/")]
    return "\n".join([*lines, "```{toctree}", ":hidden:\n", *pages, "```", ""])


def _generate(app: Sphinx, config: Any) -> None:
    for file, name in COPIES.items():
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        page = PurePosixPath("docs/generated") / f"{name}.md"
        _write(name, _rewritten(text, PurePosixPath(file), page))
    _write("directory", directory())


def _as_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with `code`: equations and examples are indented, and an
    underscore or an asterisk is no markup.
    """
    text = "\n".join(lines)
    text = re.sub(r"(?<![`\w])(\w+)_(?=[\s.,;:)\]^|]|$)(?!`)", r"\1\\_", text)
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"[*|]", r"\\\g<0>", piece) for piece in pieces[::2]]
    text = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "".join(pieces))  # as in `Stage`s
    made: list[str] = []
    for block in re.split(r"\n(?=\n)", text):
        body = block.strip("\n").split("\n")
        if all(line.startswith("    ") for line in body if line) and any(body):
            first = not made or not made[-1].strip("\n").split("\n")[-1].startswith("    ")
            made.append(("\n::\n" if first else "") + re.sub(r"\\(?=[*|_])", "", block))
        else:
            made.append(block)
    lines[:] = "\n".join(made).split("\n")


def _plain_help(app: Sphinx, context: Any, lines: list[str]) -> None:
    lines[:] = [line.replace("*", "\\*") for line in lines]


def _mathml(self: Any, node: nodes.Element, display: str) -> None:
    formula = convert(node.astext(), display=display)
    if "\\" in formula:
        _log.warning("%s is not known", re.findall(r"\\\w*", formula)[0], location=node)
    block = f'<div class="math-block">{formula}</div>'
    self.body.append(block if display == "block" else formula)
    raise nodes.SkipNode


def _whole_words(app: Sphinx, name: str, template: str, context: Any, tree: Any) -> None:
    """Commands wrap on narrow screens, but not within an option such as --dry-run."""
    page = re.compile(r'(?s)(?<=<div class="highlight-none notranslate">).*?</pre>')
    words = partial(re.sub, r"[^\s<>&]*-[^\s<>&]*", r'<span class="word">\g<0></span>')
    if "body" in context:
        body = page.sub(lambda block: words(block[0]), context["body"])
        context["body"] = re.sub(r"(?<=[>)]) -- (?=\S)", " – ", body)  # Sphinx's own, of parameters


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", _generate)
    app.connect("source-read", _read_source)
    app.connect("html-page-context", _whole_words)
    app.connect("sphinx-click-process-description", _plain_help)
    app.connect("autodoc-process-docstring", _as_rst, priority=400)
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: _mathml(self, node, "inline"), None),
        (lambda self, node: _mathml(self, node, "block"), None),
    )
    return {"version": "1", "parallel_read_safe": True}
