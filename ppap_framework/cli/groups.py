"""Groups of commands, to which installed distributions add theirs.

An entry point `name = "module:command"` of the group `ppap.commands` is the click command
`ppap name`, imported when it is typed; one with the name `experts.name` is `ppap experts name`.
They cannot replace the core's commands. If several distributions claim a name, it is typed as
`distribution:name`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

import click

from ppap_framework.cli.global_options import GlobalOptions, accept_global_options
from ppap_framework.errors import PluginError

_ENTRY_POINTS = "ppap.commands"
_METADATA = ("dist-info", "egg-info")


class Claim(NamedTuple):
    """A command that a distribution supplies; the target is "module:attribute"."""

    distribution: str
    target: str


class Group(click.Group):
    """The core's commands and those that plugins add."""

    prefix: str | None = None
    """What begins the names of entry points; None for the group's name and a dot."""

    def summaries(self) -> Mapping[str, str]:
        """The core's commands, each with its summary."""
        return {name: c.get_short_help_str(100) for name, c in sorted(self.commands.items())}

    def core_command(self, name: str) -> click.Command:
        return self.commands[name]

    def added(self) -> dict[str, list[Claim]]:
        """Plugins' commands in this group by name, each with all claims."""
        prefix = f"{self.name}." if self.prefix is None else self.prefix
        found = {
            name.removeprefix(prefix): claims
            for name, claims in plugin_commands().items()
            if name.startswith(prefix)
        }
        return {n: c for n, c in found.items() if "." not in n and n not in self.summaries()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.summaries(), *self.added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        options = ctx.ensure_object(GlobalOptions)
        if cmd_name in self.summaries():
            command = self.core_command(cmd_name)
        else:
            distribution, _, name = cmd_name.rpartition(":")
            claims = self.added().get(name, [])
            claims = [c for c in claims if distribution in ("", c.distribution)]
            if not claims:
                return None
            command = _load(name, claims)
            options.author = claims[0].distribution
        accept_global_options(command)
        options.command = f"{ctx.command_path} {cmd_name}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            advice = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*self.summaries().items()])
        if added := self.added():
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"from {_all(added[name])}") for name in added])


def plugin_commands() -> dict[str, list[Claim]]:
    """The commands of all plugins by name; nothing is imported."""
    # Importing importlib.metadata takes half as long as all else that `ppap --help` does, and its
    # entry_points() fails if one distribution's file is damaged.
    found: dict[str, list[Claim]] = {}
    for folder in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder or "."):
                stem, _, kind = entry.name.rpartition(".")
                distribution = stem.partition("-")[0].replace("_", "-").lower()
                for name, target in _entry_points(entry.path) if kind in _METADATA else ():
                    claims = found.setdefault(name, [])
                    if distribution not in [claim.distribution for claim in claims]:  # a copy
                        claims.append(Claim(distribution, target))
    return dict(sorted(found.items()))


def _entry_points(folder: str) -> list[tuple[str, str]]:
    try:
        path = f"{folder}{os.sep}entry_points.txt"
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # faster than pathlib
            text = file.read()
    except OSError:
        return []
    _, _, section = text.partition(f"[{_ENTRY_POINTS}]")
    lines = section.partition("\n[")[0].splitlines()
    pairs = [line.partition("=") for line in lines if not line.startswith(("#", ";"))]
    return [(name.strip(), target.strip()) for name, equals, target in pairs if equals]


def _load(name: str, claims: list[Claim]) -> click.Command:
    if len(claims) > 1:
        raise PluginError(
            f"command {name!r} is claimed by {_all(claims)}",
            hint=f"type {' or '.join(f'{claim.distribution}:{name}' for claim in claims)}",
        )
    from importlib.metadata import EntryPoint

    [(distribution, target)] = claims
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            command = EntryPoint(name, target, _ENTRY_POINTS).load()
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is no click command")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        raise PluginError(
            f"command {name!r} of {distribution} is broken: {type(error).__name__}: {error}",
            hint=f"pip install --upgrade {distribution}; --debug shows the traceback",
        ) from error
    return command


def _all(claims: list[Claim]) -> str:
    return " and ".join(claim.distribution for claim in claims)
