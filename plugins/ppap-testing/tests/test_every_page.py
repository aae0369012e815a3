"""Nothing that a page shows as code escapes: every command is parsed by the program itself,
whatever it would need to run, and every program of Python is compiled and its names are looked up.
Pages that need no download are followed as well, in tests/test_pages.py.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import click
import pages
import pytest
import yaml
from distributions import EVERY_PLUGIN, REPOSITORY
from pages import PAGES

import ppap_framework as framework
from ppap_framework.cli import ppap
from ppap_framework.cli.config import problems_of
from ppap_framework.cli.groups import GlobalOptions
from ppap_framework.cli.guide_options import parse_guides, settings_of, typed_pairs
from ppap_framework.cli.training import _begin
from ppap_framework.errors import AssetError, PpapError, Problems
from ppap_framework.learn import Recipe, calibrate, check_adapt, check_transfer
from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import registry
from ppap_framework.run import Sampling, check

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
TYPED = re.compile(r"(?<![\w./:-])(?:ppap|-m (?:-- )?ppap_framework) (?=[\w-])")
PROGRAMS = re.compile(
    r"(?:[A-Z_]+=\S+ )*"
    r"(ppap|pip|python|pytest|make|mkdir|touch|cd|source|curl|torchrun|accelerate|srun|sbatch|\[) "
)
PLACEHOLDERS = {
    "docs/diffusers.md": "pipe",
    "docs/experts.md": "backend my_module",
    "docs/inside-diffusers.md": "pipe components size loop index",
}
"""Names in programs of a page that its reader has."""

of_every_plugin = pytest.mark.skipif(
    not EVERY_PLUGIN, reason="what is typed is of every plugin of the repository"
)

EXAMPLE = "polish"
"""A command of nobody's, by which pages explain how plugins add theirs."""

PLAIN = {
    "ARCHITECTURE.md": ["ppap adapt", "ppap run\n", "scale    cli.run"],
    "docs/plugins/errors.md": ["ppap: error: guider"],
    "docs/tutorial/own-classifier.md": ["guided ['yellow'"],
    "plugins/ppap-plugin-detection/README.md": ["E = mean over"],
}
"""The beginnings of blocks that are neither typed nor data: diagrams, output, formulas."""


@attrs.frozen
class Block:
    """A block of code of a page, without its indentation."""

    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Without comments, long lines joined."""
        joined = re.sub(r" *\\\n *", " ", self.text).splitlines()
        return [line for line in (re.sub(r"(^|\s)#.*", "", one).rstrip() for one in joined) if line]


def blocks(page: Path) -> list[Block]:
    found = []
    for block in pages.blocks(page):
        if block["typed"]:
            kind = "indented"
        else:
            kind = block["language"] or block[0].partition("```")[2].partition("\n")[0]
        found.append(
            Block(kind, textwrap.dedent(block["typed"] or block["content"] or block["program"]))
        )
    return found


def inline(page: Path) -> list[str]:
    """What is between backticks."""
    text = re.sub(r"(?ms)^```.*?^```$|^ {4}[^\n]*$", "", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def kind_of(block: Block) -> str:
    """What an indented block is; ValueError if it is nothing that could be checked."""
    if block.language != "indented":
        return block.language
    if block.text.startswith("$ "):
        return "session"
    if block.lines and all(PROGRAMS.match(line) for line in block.lines):
        return "shell"
    for kind, read in READERS.items():
        try:
            read(block.text)
        except Exception:
            continue
        return kind
    raise ValueError(f"neither commands nor a program nor data:\n{block.text}")


READERS: Mapping[str, Callable[[str], Any]] = {
    "json": lambda text: [json.loads(one) for one in re.split(r"\n(?=\{)", text)],
    "python": ast.parse,
    "toml": tomllib.loads,
    "yaml": lambda text: next(each["apiVersion"] for each in yaml.safe_load_all(text)),
}


def texts_in(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    for each in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from texts_in(each)


def commands_in(line: str) -> Iterator[list[str]]:
    """The arguments of every `ppap` that a line of a shell calls."""
    for match in TYPED.finditer(line):
        rest = re.sub(r"\$\([^()]*\)|\$\w+", "1", line[match.end() :])  # what a shell replaces
        words = shlex.shlex(rest, posix=True, punctuation_chars=True)
        words.whitespace_split, words.commenters = True, ""
        found = []
        for word in words:
            if set(word) <= set("();<>|&"):
                break
            found.append(word)
        yield found


def component(kind: ComponentKind, name: str, made: str) -> Any:
    """A component's record, None if the page makes it."""
    return None if re.search(rf"\b{re.escape(name)}\b", made) else registry().spec(kind, name)


def check_components(params: Mapping[str, Any], made: str) -> None:
    """The backend and guides exist, with these options, checkpoints, losses and intervals."""
    problems = Problems()
    if params["backend"] and (spec := component("backend", params["backend"], made)):
        options = typed_pairs("--backend-option", params["backend_option"], spec.name, "backend")
        registry().options(spec, options)
        check_cards("backend", spec.name, params["checkpoint"])
    guiders = params.get("guider") or ()
    names = [guiders] if isinstance(guiders, str) else guiders
    if any(component("guider", re.split("[=:]", name)[0], made) is None for name in names):
        return
    for request in parse_guides({"guider": (), **params}, problems, offline=True):
        check_cards("guider", request.source, request.checkpoint)
        try:
            attrs.evolve(request, target=None).check(params.get("through", "noisy"))
        except AssetError:  # its weights, or its experts, are elsewhere
            elsewhere = (
                request.checkpoint or request.model or request.experts not in ("auto", "none")
            )
            assert elsewhere, request
    problems.check()


def check_cards(kind: ComponentKind, name: str, checkpoint: Any) -> None:
    cards = {card.name for card in registry().cards(name, kind)}
    for part in str(checkpoint or "").split("+"):
        is_name = re.fullmatch(r"[a-z0-9-]+", part) is not None
        assert not is_name or part in cards, f"{name} has no checkpoint {part!r}"


def found_command(words: list[str]) -> tuple[click.Context, list[str]]:
    """The command that the first words name, and the others; for a group without a command, it."""
    command: click.Command = ppap
    context = click.Context(ppap, info_name="ppap", obj=GlobalOptions())
    while isinstance(command, click.Group):
        while words and words[0] in ("-v", "-q", "--debug"):
            words = words[1:]
        if not words or words[0] in ("--help", "--version"):
            break
        name, found = words[0], added(f"{command.name}.{words[0]}")
        if found is None or command.get_command(context, name):
            name, found, words = command.resolve_command(context, words)
        else:
            words = words[1:]
        command, context = found, click.Context(found, parent=context, info_name=name)
    return context, words


def added(name: str) -> click.Command | None:
    """A command of a plugin of this repository, even if it is not installed."""
    for project in REPOSITORY.glob("plugins/*/pyproject.toml"):
        every = tomllib.loads(project.read_text())["project"].get("entry-points", {})
        target = every.get("ppap.commands", {}).get(name.removeprefix("ppap."))
        if target:
            module, _, attribute = target.partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
    return None


def check_command(arguments: list[str], made: str = "", *, whole: bool = True) -> None:
    """A command exists, takes these options, and could do something with their values. Nothing is
    run. A command that is only mentioned need not be whole; `made` is what its page makes.
    """
    whole &= "..." not in arguments
    if EXAMPLE in arguments[:2]:
        return
    context, words = found_command(
        shlex.split(re.sub(r"(--\S+ )?\.\.\.", "", shlex.join(arguments)))
    )
    if words == ["--help"] or (
        isinstance(context.command, click.Group) and not words and not whole
    ):
        return
    is_plugged = "--plugin-file" in words
    if is_plugged:
        place = words.index("--plugin-file")
        del words[place : place + 2]
    try:
        own = context.command.make_context(context.info_name, words, context.parent)
    except (click.MissingParameter, click.BadOptionUsage):
        if whole:
            raise
        return
    problems = problems_of(own)
    if not whole:
        problems.errors = [one for one in problems.errors if "is required" not in one.message]
    problems.check()
    params = {**own.params, "device": "cpu", "out": "out"}
    if params.get("init_image"):
        params |= {"init_image": None, "strength": None, "mask": None, "resample": None}
    name, sampling = own.command.name, Sampling()
    if name in ("run", "synthesize"):
        check(params["num"], *settings_of(params))
    if "backend_option" in params and not is_plugged and (whole or params.get("guider")):
        check_components(params if name == "run" else {**params, "experts": None}, made)
        if name in ("adapt", "transfer") and params["backend"] and params["guider"]:
            more, chosen = _begin(own, params)
            more.check()
            if name == "adapt":
                check_adapt(**chosen, sampling=sampling, num=params["num"])
            else:
                check_transfer(**chosen)


def check_line(line: str, page: Path, made: str) -> None:
    """The `ppap` of a line, and what pip, python and make are given."""
    for arguments in commands_in(line):
        check_command(arguments, made)
    for one in re.split(r" *(?:&&|\|\||;) *", line):
        if one.startswith(("pip ", "python ", "make ")):
            check_other(*shlex.split(one), page=page, made=made)


def check_other(program: str, *words: str, page: Path, made: str) -> None:
    """Targets of make exist, distributions, modules and files."""
    if program == "make":
        asked = ["make", "-pn"]  # whose answer has variables filled in
        known = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        (targets,) = re.findall(r"(?m)^\.PHONY: (.*)$", known.stdout)
        assert {*words} <= {*targets.split()}, f"make has not all of {words}"
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words[1]
    elif program == "python":
        there = (page.parent, REPOSITORY, *REPOSITORY.glob("plugins/*/recipes"))
        assert words[0] in made or any((place / words[0]).exists() for place in there), words[0]
    for word in words if program == "pip" else ():
        name, _, extras = word.rstrip("]").partition("[")
        if name.startswith("ppap-"):
            folder = REPOSITORY if name == "ppap-framework" else REPOSITORY / "plugins" / name
            has = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
            assert {*extras.split(",")} - {""} <= has.get("optional-dependencies", {}).keys(), word
        elif "/" in name and not name.startswith("./ppap-plugin-"):
            assert (REPOSITORY / name).exists(), name


OPTIONAL = ("datasets", "kornia")
"""Packages that need not be here: of the extra `slow`, and of a plugin in the tutorial."""

DRAWING = {*attrs.fields_dict(framework.Sampling), *attrs.fields_dict(framework.Compute)}
LEARNING = {*DRAWING, *attrs.fields_dict(Recipe)}
FIELDS = {
    framework.guide: {*attrs.fields_dict(framework.GuideRequest)},
    framework.sample: DRAWING,
    framework.synthesize: DRAWING,
    framework.transfer: LEARNING,
    framework.adapt: LEARNING,
    calibrate: DRAWING,
}
"""Functions that take the fields of records by name."""


def check_program(text: str, known: dict[str, Any], made: str) -> None:
    """It compiles; what it imports, and attributes of that, exist; functions take these arguments;
    no other name is unknown. `known` are the names so far, to which its own are added.
    """
    tree = ast.parse(text)
    every = [*ast.walk(tree)]
    for node in every:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
            )
            roots = {module.partition(".")[0] for module in modules}
            if roots & {*OPTIONAL} or any(f"{root}/" in made for root in roots):
                known |= dict.fromkeys((one.asname or one.name for one in node.names), Unknown)
            else:
                exec(compile(ast.Module([node], []), "page", "exec"), known)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known[node.name] = Unknown
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            known[node.id] = Unknown
        elif isinstance(node, ast.arg):
            known[node.arg] = Unknown
    for node in every:
        if isinstance(node, ast.Name):
            assert node.id in known or hasattr(builtins, node.id), f"what is {node.id!r}?"
        if isinstance(node, ast.Attribute | ast.Call):
            found = value_of(node.func if isinstance(node, ast.Call) else node, known)
            if isinstance(node, ast.Call) and found is not Unknown:
                check_call(found, node)


class Unknown:
    """Any value that only running a program would show."""


def value_of(node: ast.AST, known: Mapping[str, Any]) -> Any:
    """The value of a name, or of an attribute of something imported; AttributeError if there is
    none.
    """
    if isinstance(node, ast.Name):
        return known.get(node.id, Unknown)
    if not isinstance(node, ast.Attribute):
        return Unknown
    owner = value_of(node.value, known)
    is_open = inspect.ismodule(owner) or inspect.isclass(owner)
    return getattr(owner, node.attr) if is_open and owner is not Unknown else Unknown


def check_call(function: Any, node: ast.Call) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return
    names = {one.name for one in parameters} | FIELDS.get(function, set())
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters) and function not in FIELDS
    for keyword in node.keywords:
        assert takes_any or keyword.arg in (None, *names), f"{function.__name__}({keyword.arg}=)"
    positional = [
        one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    is_open = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    assert is_open or starred or len(node.args) <= len(positional), (
        f"{function.__name__}: too many arguments"
    )


@of_every_plugin
@pytest.mark.parametrize("name", NAMES)
def test_all_code_is_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = REPOSITORY / name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPAP_OFFLINE", "1")
    made = made_by(page)
    for block in pages.blocks(page):
        if block["file"] and "/" not in block["file"]:
            Path(block["file"]).write_text(block["content"])
    known: dict[str, Any] = dict.fromkeys(PLACEHOLDERS.get(name, "").split(), Unknown)
    known["ppap"] = framework
    plain = PLAIN.get(name, [])
    for block in blocks(page):
        if any(block.text.startswith(beginning) for beginning in plain):
            continue
        kind = kind_of(block)
        if kind == "python":
            check_program(block.text, known, made)
        elif kind == "yaml":
            for text in texts_in([*yaml.safe_load_all(block.text)]):
                check_line(text, page, made)
        elif kind in ("shell", "session"):
            for line in block.lines:
                if kind == "shell" or line.startswith("$ "):
                    check_line(line.removeprefix("$ "), page, made)
        else:
            assert kind in READERS or kind.startswith("{"), f"nothing reads {kind!r}"
            READERS.get(kind, len)(block.text)
    for code in inline(page):
        for arguments in commands_in(code):
            check_command(arguments, made, whole=False)
        if code.startswith("make "):
            check_line(code, page, made)


def made_by(page: Path) -> str:
    """What a page makes: its files, and the components that `ppap new` writes."""
    files = [
        f"{block['file']}\n{block['content']}" for block in pages.blocks(page) if block["file"]
    ]
    new = re.findall(r"ppap new \w+ ([\w-]+)", page.read_text(encoding="utf-8"))
    return "\n".join([*files, *new])


def test_the_transcript_replays_the_tutorial() -> None:
    tutorial, transcript = (
        pages.DOCS / "tutorial" / f"{name}.md" for name in ("write-a-guider", "transcript")
    )
    shown = [command for code in inline(transcript) for command in code.split("; ")]
    missing = [command for command in pages.typed(tutorial) if command not in shown]
    assert missing == []


def helped(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Every command and its help."""
    yield context.command_path, command.help or ""
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        child = command.get_command(context, name)
        assert child is not None
        yield from helped(child, click.Context(child, parent=context, info_name=name))


@of_every_plugin
def test_the_examples_of_help_are_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []
    for where, text in helped(ppap, click.Context(ppap, info_name="ppap", obj=GlobalOptions())):
        lines = re.sub(r" *\\\n *", " ", text).splitlines()
        for line in (line.strip() for line in lines if line.strip().startswith("ppap ")):
            for arguments in commands_in(line.partition(" #")[0]):
                check_command(arguments)
                seen.append(where)
    assert {"ppap run", "ppap adapt"} <= {*seen}


@pytest.mark.parametrize(
    "typed",
    [
        "rune",
        "run",
        "experts",
        "adapt --backend adm --guider classifier --target 0.8",
        "run --backend adm --sampler euler",
        "run --backend adm --steps few",
        "run --backend adm --steps 0",
        "run --backend amd",
        "run --backend adm --checkpoint adm-257",
        "run --backend adm --backend-option depth=3",
        "run --backend adm --guider classify",
        "run --backend adm --guider classifier=high",
        "run --backend adm --guider classifier:0.9-0.2",
        "run --backend adm --guider classifier --guider-option softness=1",
        "run --backend adm --guider classifier --loss depth-mse",
        "run --backend adm --guider classifier --guider-checkpoint shapes",
        "run --backend adm --target cube",
        "transfer --backend adm --guider classifier --out out",
        "adapt --backend adm --guider classifier --adapter lora:rang=3",
        "adapt --backend adm --guider classifier --boundaries never",
        "adapt --backend adm --guider classifier --experts-of 7/5",
        "experts inspect",
        "new sampler mine",
        "data verify one two",
    ],
)
def test_wrong_commands_are_noticed(typed: str) -> None:
    with pytest.raises((click.ClickException, PpapError, AssertionError)):
        check_command(typed.split())


@pytest.mark.parametrize(
    "text",
    [
        "import ppap_frame",
        "from ppap_framework import samples",
        "ppap.samples('adm')",
        "ppap.sample('adm', step=5)",
        "ppap.guide('classifier', aim='cube')",
        "ppap.adapt('adm', 'classifier', iteration=5)",
        "print(results)",
        "ppap.backend('adm', 'shapes')",
        "ppap.sample('adm'",
    ],
)
def test_wrong_programs_are_noticed(text: str) -> None:
    with pytest.raises((AssertionError, AttributeError, ImportError, SyntaxError)):
        check_program(text, {"ppap": framework}, "")


@pytest.mark.parametrize("line", ["make tests", "pip install ppap-plugin-none", "python none.py"])
def test_wrong_lines_of_others_are_noticed(line: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_line(line, REPOSITORY / "README.md", "")


def test_a_block_that_nobody_can_check_is_noticed() -> None:
    with pytest.raises(ValueError, match="neither"):
        kind_of(Block("indented", "papa run --backend adm"))
    assert [*commands_in("srun ppap data verify A && python -m ppap_framework doctor | less")] == [
        ["data", "verify", "A"],
        ["doctor"],
    ]
