"""Options from flags, else variables PPAP_COMMAND_OPTION, else a file, else the defaults.

The file is the nearest `ppap.toml`, or `pyproject.toml` with a table `[tool.ppap]`, from the
current folder upwards. It has a table for each command, and in it options by their names:

    [run]
    backend = "adm"
    guider = ["depth=2", "classifier=4:0.2-0.9"]
    steps = 50

An option that may be given several times takes a list there, and in the environment values
separated by ";". Paths are relative to the current folder, as on the command line.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ppap_framework.cli import ppap
from ppap_framework.cli.groups import GlobalOptions
from ppap_framework.cli.output import json_option, print_json, print_table
from ppap_framework.errors import Problems, UsageError, did_you_mean
from ppap_framework.files import refusals
from ppap_framework.registry import plugin_file

_FILES = ("ppap.toml", "pyproject.toml")
_CONFIGURED = ("run", "synthesize", "transfer", "adapt", "diagnose")
"""The commands whose options come from files and the environment too; a plugin adds the last."""


class Text(click.types.StringParamType):
    """Any text; in one environment variable, several are separated by ";"."""

    envvar_list_splitter = ";"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if isinstance(value, bool | list | dict):
            self.fail(f"{value!r} is not text", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        """Names of what is installed, else paths."""
        from click.shell_completion import CompletionItem

        from ppap_framework.registry.names import offered

        found = [name for name in offered(param.name or "") if name.startswith(incomplete)]
        path = CompletionItem(incomplete, type="dir" if param.metavar == "FOLDER" else "file")
        return [*map(CompletionItem, found)] or [path]


class NumberOrAuto(Text):
    """A number of a type, or the word "auto"; a float may be given as raw:NUMBER."""

    def __init__(self, number: type[int] | type[float]) -> None:
        self.number, self.raw = number, "raw:" if number is float else ""
        self.name = "number, raw:NUMBER," if self.raw else "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            text = str(value)
            if self.raw and text.startswith(self.raw):
                float(text.removeprefix(self.raw))
                return text
            return text if text == "auto" else self.number(text)
        except ValueError:
            self.fail(f"{value!r} is neither a {self.name} nor auto.", param, ctx)


class Option(click.Option):
    """An option whose wrong value is collected and replaced by the default, or None if required."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            message, default = f"{self.opts[0]} is required", None
        except click.BadParameter as error:
            name = self.name or ""
            source, where = ctx.get_parameter_source(name), ""
            if source is ParameterSource.ENVIRONMENT:
                where = f" in {ctx.auto_envvar_prefix}_{name.upper()}"
            elif source is ParameterSource.DEFAULT_MAP:
                where = " in the configuration file"
            message = f"{self.opts[0]}{where}: {error.message}".rstrip(".")
            default = None if self.required else super().process_value(ctx, self.default)
        problems_of(ctx).errors.append(UsageError(message, hint=f"{ctx.command_path} --help"))
        return default


def option(*names: str, choices: Sequence[str] = (), **settings: Any) -> Callable[[Any], Any]:
    """An `Option` of its default's type, or of text; the first of its choices is the default."""
    if choices:
        settings = {"type": click.Choice(choices), "default": choices[0]} | settings
    default = settings.get("default")
    if not settings.get("is_flag"):
        settings.setdefault("type", Text() if default is None else None)
        settings.setdefault("show_default", default is not None)
    return click.option(*names, cls=Option, **settings)


def options(*every: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that adds options to a command, in this order."""
    return lambda command: functools.reduce(lambda c, add: add(c), reversed(every), command)


_DTYPES = ("float32", "bfloat16", "float16")
_PAIRS: dict[str, Any] = {"multiple": True, "metavar": "KEY=VALUE"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "num": {"type": int, "help": "Number of images."},
    "steps": {"default": 50, "help": "Steps from noise to image."},
    "sampler": {"choices": ("ancestral", "ddpm", "ddim"), "help": "Sampler."},
    "eta": {
        "type": float,
        "help": "Noise that a step adds, from 0; 1 is as much as of ddpm. By default 1.5 with "
        "ancestral and 0 with ddim, which differ in this alone.",
    },
    "seed": {"default": 0, "help": "Seed; the noise of image i depends on (seed, i)."},
    "batch": {"type": int, "help": "Batch size."},
    "device": {"default": "auto", "help": "Device, such as cpu, cuda, cuda:1 or mps."},
    "threads": {"type": int, "help": "Threads on the CPU; by default torch's own choice."},
    "precision": {"choices": ("float32", "bfloat16"), "help": "Precision of matrix products."},
    "workers": {"type": int, "help": "Processes that draw; by default one a core, up to 8."},
    "overwrite": {"is_flag": True, "help": "Replace what an earlier call wrote to the folder."},
    "allow-mismatch": {
        "multiple": True,
        "help": "Accept another `backend`, other `options`, or another `resolution`.",
    },
    "offline": {"is_flag": True, "help": "Download nothing."},
    "json": {"is_flag": True, "help": "Print JSON."},
}


def settings(*names: str, **defaults: object) -> Callable[[Any], Any]:
    """The options of these names, and those of `defaults` with other default values."""
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    own |= {name: {"default": value} for name, value in defaults.items()}
    return options(*(option(f"--{name}", **(_SETTINGS[name] | own[name])) for name in own))


def plug_in(ctx: click.Context, _: object, path: str | None) -> None:
    if path is not None and not ctx.resilient_parsing:
        ctx.ensure_object(GlobalOptions).afterwards.enter_context(plugin_file(path))


backend_options = options(
    option("--plugin-file", metavar="PATH", callback=plug_in, help="A Python file as a plugin."),
    option("--backend", required=True, metavar="NAME", help="The diffusion model."),
    option("--checkpoint", metavar="NAME|PATH", help="Its weights."),
    option("--dtype", type=click.Choice(_DTYPES), help="Type to which its weights are cast."),
    option("--backend-option", help="Its options; see `ppap plugins info NAME`.", **_PAIRS),
)
guide_options = options(
    option("--guider", required=True, metavar="NAME", help="The network."),
    option("--guider-model", help="Which network, if the guider knows several."),
    option("--guider-checkpoint", help="Its weights, by name or path."),
    option("--guider-option", help="Its options; see `ppap plugins info NAME`.", **_PAIRS),
    option("--loss", help="Loss that compares its answers, if not the guider's own."),
    option("--loss-option", help="Option of the loss, such as temperature=0.5.", **_PAIRS),
)


def problems_of(ctx: click.Context) -> Problems:
    """Collected problems of a command's options; the command may add its own."""
    problems: Problems = ctx.meta.setdefault("ppap_framework.problems", Problems())
    return problems


class Command(click.Command):
    """A command whose options come from the environment and a file as well."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        name, own = self.name or "", [p for p in self.params if isinstance(p, Option)]
        prefix = extra["auto_envvar_prefix"] = f"PPAP_{name.upper()}"
        asked = {"-h", "--help"}.intersection(args) or extra.get("resilient_parsing")
        if not asked:  # help and completion work even if a file is broken
            advice = f"`ppap {name} --help`"
            known = [f"{prefix}_{(option.name or '').upper()}" for option in own]
            for variable in sorted(os.environ):
                if variable.startswith(f"{prefix}_") and variable not in known:
                    raise _unknown("the environment", variable, variable, known, advice)
            extra["default_map"] = values = {}
            path, tables = find_config(Path.cwd()) or (None, {})
            flags = {flag[2:]: option for option in own for flag in option.opts}
            for key, value in tables.get(name, {}).items():
                flag = key.replace("_", "-")
                if flag not in flags:
                    raise _unknown(str(path), f"{key!r} in [{name}]", flag, flags, advice)
                values[flags[flag].name] = _as_typed(flags[flag], value)
        return super().make_context(info_name, args, parent, **extra)


def _as_typed(option: Option, value: Any) -> Any:
    """A value of a file as it would be typed, so that 3.5 and true are no whole numbers."""
    if option.multiple or option.nargs != 1:
        return value if isinstance(value, list) else [value]
    flag = option.is_flag and isinstance(value, bool)
    return value if flag or isinstance(option.type, Text) else str(value)


def find_config(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest file that configures ppap, from a folder upwards, and its tables by command.
    UsageError if it is not valid TOML, or has other tables than those of commands.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    for path in (place / name for place in (folder, *folder.parents) for name in _FILES):
        if not os.access(path, os.F_OK) or path.is_dir():
            continue
        with refusals(path, UsageError, action="read"):
            content = path.read_bytes()
        own = path.name == _FILES[0]
        if not own and b"tool.ppap" not in content:
            continue
        try:
            tables = tomllib.loads(content.decode())
        except ValueError as error:
            raise UsageError(f"{str(path)!r} is not valid TOML: {error}") from error
        tables = tables if own else tables.get("tool", {}).get("ppap")
        for name, table in (tables or {}).items():
            if name not in _CONFIGURED:
                advice = f"write {' or '.join(f'[{command}]' for command in _CONFIGURED)}"
                raise _unknown(str(path), f"[{name}]", name, _CONFIGURED, advice)
            if not isinstance(table, dict):
                raise UsageError(f"{name!r} in {str(path)!r} is no table", hint=f"write [{name}]")
        if tables is not None:
            return path, tables
    return None


def _unknown(where: str, what: str, name: str, known: Iterable[str], advice: str) -> UsageError:
    hint = did_you_mean(name, known) or advice
    return UsageError(f"{where} sets {what}, which does not exist", hint=hint)


def configured() -> dict[str, click.Command]:
    """The commands whose options come from files, by name; a plugin's if it is installed."""
    ctx = click.Context(ppap, info_name="ppap", obj=GlobalOptions())
    found = ((name, ppap.get_command(ctx, name)) for name in _CONFIGURED)
    return {name: command for name, command in found if command is not None}


@click.command("config", short_help="Show the values of options, and where they come from.")
@click.argument("commands", metavar="[COMMAND]...", type=click.Choice(_CONFIGURED), nargs=-1)
@json_option
def command(commands: tuple[str, ...], as_json: bool) -> None:
    """Show the value of every option, and where it comes from.

    A flag goes before a variable PPAP_COMMAND_OPTION, that before ppap.toml or [tool.ppap] in
    pyproject.toml, and that before the default. Without COMMAND, the options of all commands that
    read them from there are shown.
    """
    found = find_config(Path.cwd())
    file, problems = str(found[0]) if found else None, Problems()
    sources = {ParameterSource.ENVIRONMENT: "environment", ParameterSource.DEFAULT_MAP: file}
    values: dict[str, dict[str, Any]] = {}
    every = configured()
    for name in commands or _CONFIGURED:
        if name not in every:  # its plugin is not installed
            continue
        ctx = every[name].make_context(f"ppap {name}", [])
        told = (one for one in problems_of(ctx).errors if "is required" not in one.message)
        problems.errors += [UsageError(f"{name} {one.message}", hint=one.hint) for one in told]
        values[name] = {}
        for own in (o.name or "" for o in ctx.command.params if isinstance(o, Option)):
            source = ctx.get_parameter_source(own) or ParameterSource.DEFAULT
            row = {"value": ctx.params[own], "from": sources.get(source, "default")}
            values[name][own.replace("_", "-")] = row
    if as_json:
        print_json({"file": file, **values})
    else:
        click.echo(f"file: {file or 'none'}")
        for name, shown in values.items():
            rows = [(option, *row.values()) for option, row in shown.items()]
            print_table((f"option of {name}", "value", "from"), rows)
    problems.check()
