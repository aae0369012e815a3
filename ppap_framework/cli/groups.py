"""Groups of commands, to which installed distributions add theirs, and options of every command.

An entry point `name = "module:command"` of the group `ppap.commands` is the click command
`ppap name`, imported when it is typed; one with the name `experts.name` is `ppap experts name`.
They cannot replace the core's; a name that several claim is typed as `distribution:name`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_ENTRY_POINTS = "ppap.commands"
_METADATA = ("dist-info", "egg-info")


class GlobalOptions:
    """Values of `-v`, `-q` and `--debug`; `click.Context.obj` of every command."""

    def __init__(self) -> None:
        self.verbosity, self.debug = 0, False
        self.command = self.author = "ppap"  # what was typed, and the distribution that supplies it
        self.afterwards = contextlib.ExitStack()  # restored on exit: a process may go on


def _add(ctx: click.Context, option: click.Parameter, value: int) -> None:
    """Add a global option's value to the one given before the command's name."""
    options = ctx.ensure_object(GlobalOptions)
    if option.name == "debug":
        options.debug |= bool(value)
    elif value:
        import logging

        options.verbosity += value if option.name == "verbose" else -value
        ours = logging.getLogger("ppap_framework")
        options.afterwards.callback(ours.setLevel, ours.level)
        ours.setLevel(logging.WARNING - 10 * max(-1, min(options.verbosity, 2)))


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """`-v`, `-q` and `--debug`, shown in the help of `ppap` and hidden in that of each command."""
    common: dict[str, Any] = {"callback": _add, "expose_value": False, "hidden": hidden}
    return [
        click.Option(["-v", "--verbose"], count=True, help="Log more.", **common),
        click.Option(["-q", "--quiet"], count=True, help="Log less.", **common),
        click.Option(["--debug"], is_flag=True, help="Show tracebacks.", **common),
    ]


def _accept_global_options(command: click.Command) -> None:
    """Add the global options to a command and its subcommands; their own of the same name win."""
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [o for o in global_options(hidden=True) if not taken.intersection(o.opts)]
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        _accept_global_options(child)


class Group(click.Group):
    """The core's commands and those that plugins add."""

    def summaries(self) -> Mapping[str, str]:
        """The core's commands, each with its summary."""
        return {name: c.get_short_help_str(100) for name, c in sorted(self.commands.items())}

    def added(self) -> dict[str, dict[str, str]]:
        """Plugins' commands in this group, as `plugin_commands`."""
        prefix = "" if self.name == "ppap" else f"{self.name}."
        every = plugin_commands().items()
        found = {name.removeprefix(prefix): c for name, c in every if name.startswith(prefix)}
        return {n: c for n, c in found.items() if "." not in n and n not in self.summaries()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.summaries(), *self.added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        options = ctx.ensure_object(GlobalOptions)
        if cmd_name in self.summaries():
            command = self.commands[cmd_name]
        else:
            distribution, _, name = cmd_name.rpartition(":")
            every = self.added().get(name, {}).items()
            claims = {d: target for d, target in every if distribution in ("", d)}
            if not claims:
                return None
            command, options.author = _load(name, claims), next(iter(claims))
        _accept_global_options(command)
        options.command = f"{ctx.command_path} {cmd_name}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0].startswith("-") or self.get_command(ctx, args[0]) is not None
        if not known and not ctx.resilient_parsing:  # as when a word is completed
            advice = did_you_mean(args[0], self.list_commands(ctx))
            words = f"There is no command {args[0]!r}. {advice[:1].upper()}{advice[1:]}"
            raise click.UsageError(words.strip(), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        rows = {**self.summaries(), **self._origins()}  # click would import every command
        items = [CompletionItem(n, help=rows[n]) for n in rows if n.startswith(incomplete)]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own, added = self.summaries(), self._origins()
        for title, rows in (("Commands", own), ("Commands of plugins", added)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl([*rows.items()])

    def _origins(self) -> dict[str, str]:
        return {name: f"from {' and '.join(claims)}" for name, claims in self.added().items()}


def plugin_commands() -> dict[str, dict[str, str]]:
    """Plugins' commands: each name's "module:attribute" by distribution; nothing is imported."""
    # Importing importlib.metadata takes half as long as all else that `ppap --help` does, and its
    # entry_points() fails if one distribution's file is damaged.
    found: dict[str, dict[str, str]] = {}
    for folder in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder or "."):
                stem, _, kind = entry.name.rpartition(".")
                distribution = stem.partition("-")[0].replace("_", "-").lower()
                for name, target in _entry_points(entry.path) if kind in _METADATA else ():
                    found.setdefault(name, {}).setdefault(distribution, target)
    return dict(sorted(found.items()))


def _entry_points(folder: str) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        path = f"{folder}{os.sep}entry_points.txt"
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # faster than pathlib
            _, _, section = file.read().partition(f"[{_ENTRY_POINTS}]")
        for line in section.partition("\n[")[0].splitlines():
            name, equals, target = line.partition("=")
            if equals and not line.startswith(("#", ";")):
                yield name.strip(), target.strip()


def _load(name: str, claims: Mapping[str, str]) -> click.Command:
    if len(claims) > 1:
        hint = f"type {' or '.join(f'{distribution}:{name}' for distribution in claims)}"
        raise PluginError(f"command {name!r} is claimed by {' and '.join(claims)}", hint=hint)
    from importlib.metadata import EntryPoint

    [(distribution, target)] = claims.items()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            command = EntryPoint(name, target, _ENTRY_POINTS).load()
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is no click command")
    except (Exception, SystemExit) as error:
        message = f"command {name!r} of {distribution} is broken: {type(error).__name__}: {error}"
        hint = f"pip install --upgrade {distribution}; --debug shows the traceback"
        raise PluginError(message, hint=hint) from error
    return command
