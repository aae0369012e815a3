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

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ppap_framework.cli.output import json_option, print_json, print_table
from ppap_framework.errors import Problems, UsageError

_FILES = ("ppap.toml", "pyproject.toml")
_PROBLEMS = "ppap_framework.problems"
_CONFIGURED = ("run", "synthesize", "transfer", "adapt", "diagnose")
"""The commands whose options come from files and the environment too."""


class Text(click.types.StringParamType):
    """Any text; in one environment variable, several are separated by ";"."""

    envvar_list_splitter = ";"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if isinstance(value, bool | list | dict):
            self.fail(f"{value!r} is not text", param, ctx)
        return str(value)


class Option(click.Option):
    """An option whose wrong value is collected and replaced by the default, or None if required."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            message, default = f"{self.opts[0]} is required", None
        except click.BadParameter as error:
            name = self.name or ""
            sources = {
                ParameterSource.ENVIRONMENT: f" in {ctx.auto_envvar_prefix}_{name.upper()}",
                ParameterSource.DEFAULT_MAP: " in the configuration file",
            }
            source = sources.get(ctx.get_parameter_source(name) or ParameterSource.COMMANDLINE, "")
            message = f"{self.opts[0]}{source}: {error.message}".rstrip(".")
            default = None if self.required else super().process_value(ctx, self.default)
        problems_of(ctx).errors.append(UsageError(message, hint=f"{ctx.command_path} --help"))
        return default


def option(*names: str, choices: Sequence[str] = (), **settings: Any) -> Callable[[Any], Any]:
    """An `Option` of text by default; the first of its choices is the default."""
    if choices:
        settings |= {"type": click.Choice(choices), "default": choices[0]}
    if not settings.get("is_flag"):
        settings.setdefault("type", Text())
        settings.setdefault("show_default", settings.get("default") is not None)
    return click.option(*names, cls=Option, **settings)


def count_or_auto(value: object) -> Any:
    """The type of an option that is a whole number or the word "auto"."""
    try:
        return value if value == "auto" else int(str(value))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a whole number nor auto.") from error


def scale_text(value: object) -> Any:
    """The type of a guidance scale: a number, raw:NUMBER, or the word "auto"."""
    text = str(value).strip()
    try:
        number = None if text == "auto" else float(text.removeprefix("raw:"))
    except ValueError as error:
        message = f"{value!r} is neither a number, raw:NUMBER, nor auto."
        raise click.BadParameter(message) from error
    return text if number is None or text.startswith("raw:") else number


def problems_of(ctx: click.Context) -> Problems:
    """Collected problems of a command's options; the command may add its own."""
    problems: Problems = ctx.meta.setdefault(_PROBLEMS, Problems())
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
        prefix = f"PPAP_{(self.name or '').upper()}"
        extra["auto_envvar_prefix"] = prefix
        if not {"-h", "--help"}.intersection(args):  # help works even if a file is broken
            flags = {o[2:]: p for p in self.params if isinstance(p, Option) for o in p.opts}
            _check_environment(self.name or "", prefix, flags.values())
            extra["default_map"] = _from_file(self.name or "", flags)
        return super().make_context(info_name, args, parent, **extra)


def find_config(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest configuration file, from a folder upwards, and its tables by command.

    Raises:
        UsageError: If it is not valid TOML, or has other tables than those of commands.
    """
    for place in (folder, *folder.parents):
        for name in _FILES:
            tables = _read(place / name)
            if tables is not None:
                return place / name, tables
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The tables of a file; None if there is none, or it does not configure ppap."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    own = path.name == _FILES[0]
    try:
        content = path.read_bytes()
        if not own and b"tool.ppap" not in content:
            return None
        tables = tomllib.loads(content.decode())
    except OSError:
        return None
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is not valid TOML: {error}") from error
    tables = tables if own else tables.get("tool", {}).get("ppap")
    for name, table in (tables or {}).items():
        if name not in _CONFIGURED:
            advice = " or ".join(f"[{command}]" for command in _CONFIGURED)
            raise _unknown(str(path), f"[{name}]", name, _CONFIGURED, f"write {advice}")
        if not isinstance(table, dict):
            raise UsageError(f"{name!r} in {str(path)!r} is not a table", hint=f"write [{name}]")
    return tables  # type: ignore[no-any-return]  # tables of tables, as checked


def _from_file(command: str, flags: Mapping[str, click.Option]) -> dict[str, Any]:
    """Values of a command's options from the file: a `default_map` for click."""
    path, tables = find_config(Path.cwd()) or (None, {})
    values: dict[str, Any] = {}
    for key, value in tables.get(command, {}).items():
        flag = key.replace("_", "-")
        if flag not in flags:
            what = f"{key!r} in [{command}]"
            raise _unknown(str(path), what, flag, flags, f"`ppap {command} --help`")
        option = flags[flag]
        several = option.multiple and not isinstance(value, list)
        values[option.name or ""] = [value] if several else value
    return values


def _check_environment(command: str, prefix: str, options: Iterable[click.Option]) -> None:
    known = {f"{prefix}_{(option.name or '').upper()}" for option in options}
    for variable in sorted(os.environ):
        if variable.startswith(f"{prefix}_") and variable not in known:
            raise _unknown("the environment", variable, variable, known, f"`ppap {command} --help`")


def _unknown(where: str, what: str, name: str, known: Iterable[str], advice: str) -> UsageError:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else advice
    return UsageError(f"{where} sets {what}, which does not exist", hint=hint)


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
    file = str(found[0]) if found else None
    problems = Problems()
    values = {name: _values(name, file, problems) for name in commands or _CONFIGURED}
    if as_json:
        print_json({"file": file, **values})
    else:
        click.echo(f"file: {file or 'none'}")
        for name, options in values.items():
            rows = [(option, _shown(v["value"]), v["from"]) for option, v in options.items()]
            print_table((f"option of {name}", "value", "from"), rows)
    problems.check()


def _values(name: str, file: str | None, problems: Problems) -> dict[str, dict[str, Any]]:
    """Each option of a command with its value and source."""
    configured: click.Command = importlib.import_module(f"ppap_framework.cli.{name}").command
    context = configured.make_context(f"ppap {name}", [])
    problems.errors += [
        UsageError(f"{name} {problem.message}", hint=problem.hint)
        for problem in problems_of(context).errors
        if "is required" not in problem.message
    ]
    sources = {ParameterSource.ENVIRONMENT: "environment", ParameterSource.DEFAULT_MAP: file}
    return {
        option.name.replace("_", "-"): {
            "value": context.params[option.name],
            "from": sources.get(context.get_parameter_source(option.name), "default"),  # type: ignore[arg-type]  # every option has a source
        }
        for option in configured.params
        if isinstance(option, Option) and option.name
    }


def _shown(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
