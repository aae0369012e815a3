"""The command line: `ppap --help` imports click and nothing heavier.

A command lives in a module of its own, imported when it is typed, as the click command `command`;
it returns None or its exit code. Results go to stdout; errors, logs and progress to stderr.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, distributions
from typing import Any, NoReturn

import click

from ppap_framework.errors import PpapError, is_out_of_memory

__all__ = ["COMMANDS", "State", "colour", "main", "ppap"]

COMMANDS = {
    "run": ("ppap_framework.cli.run", "Draw images from a diffusion model, steered by guides."),
    "synthesize": (
        "ppap_framework.cli.synthesize",
        "Draw the images that experts are trained on; nothing steers.",
    ),
    "transfer": (
        "ppap_framework.cli.transfer",
        "Train experts: a network on noised images learns what it says of clean ones.",
    ),
    "adapt": (
        "ppap_framework.cli.adapt",
        "Make a network understand a diffusion model's noise: synthesize, then transfer.",
    ),
    "diagnose": (
        "ppap_framework.cli.diagnose",
        "Measure what a network understands of noised images, and what its experts do.",
    ),
    "data": ("ppap_framework.cli.data", "Look at the images that `ppap synthesize` drew."),
    "experts": ("ppap_framework.cli.experts", "Show, check and calibrate experts."),
    "checkpoints": (
        "ppap_framework.cli.checkpoints",
        "Show, fetch, check and convert the weights that plugins know of.",
    ),
    "config": (
        "ppap_framework.cli.config",
        "Show the values of options, and where they come from.",
    ),
    "plugins": ("ppap_framework.cli.plugins", "Show what is installed."),
    "doctor": ("ppap_framework.cli.doctor", "Check the installation and every plugin."),
}
"""The module and the summary of each command: all that `ppap --help` needs."""

_GROUP = "ppap.commands"
"""The entry-point group of commands that plugins supply: "name = module:command", or
"group.name = module:command" for a subcommand of a group."""


@functools.cache
def plugin_commands(group: str = "ppap") -> dict[str, EntryPoint]:
    """The commands that installed distributions add to a group, by name, not imported. The core's
    own names win.
    """
    found: dict[str, EntryPoint] = {}
    for distribution in distributions():
        try:
            offered = distribution.entry_points.select(group=_GROUP)
        except Exception:  # a damaged list; `ppap doctor` reports it
            continue
        for entry in offered:
            parent, _, name = entry.name.rpartition(".")
            if (parent or "ppap") == group and (parent or name not in COMMANDS):
                found.setdefault(name, entry)
    return dict(sorted(found.items()))


_BUG = 1
_INTERRUPTED = 130


class State:
    """What the global options say; `click.Context.obj` of every command.

    Attributes:
        verbosity: 0 shows warnings and progress; each `-v` adds one and each `-q` takes one.
        debug: Whether errors show their traceback.
        afterwards: What `main` puts back when it leaves: a process may type more than one command.
    """

    def __init__(self) -> None:
        self.verbosity = 0
        self.debug = False
        self.afterwards = contextlib.ExitStack()


def _add_verbosity(ctx: click.Context, option: click.Parameter, count: int) -> None:
    state = ctx.ensure_object(State)
    if count:
        state.verbosity += count if option.name == "verbose" else -count
        _set_log_level(state)


def _set_log_level(state: State) -> None:
    import logging

    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
    ours = logging.getLogger("ppap_framework")
    state.afterwards.callback(ours.setLevel, ours.level)
    ours.setLevel(levels[max(-1, min(state.verbosity, 2))])


def _show_logs(state: State) -> None:
    """On stderr, as all that is said there."""
    import logging

    root = logging.getLogger()
    if root.handlers:  # whoever calls from Python may have arranged where logs go
        return
    stderr = logging.StreamHandler()
    stderr.setFormatter(logging.Formatter("ppap: %(message)s"))
    root.addHandler(stderr)
    state.afterwards.callback(root.removeHandler, stderr)


def _set_debug(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    state = ctx.ensure_object(State)
    state.debug = state.debug or value


def _global_options(hidden: bool) -> list[click.Option]:
    common: dict[str, Any] = {"expose_value": False, "hidden": hidden}
    return [
        click.Option(
            ["-v", "--verbose"], count=True, callback=_add_verbosity, help="Log more.", **common
        ),
        click.Option(
            ["-q", "--quiet"], count=True, callback=_add_verbosity, help="Log less.", **common
        ),
        click.Option(
            ["--debug"], is_flag=True, callback=_set_debug, help="Show tracebacks.", **common
        ),
    ]


_EVERYWHERE = _global_options(hidden=True)
"""The same options, understood behind the command too."""


def _accept_global_options(command: click.Command) -> None:
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in _EVERYWHERE if not taken.intersection(option.opts)]
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_global_options(child)


class PluginGroup(click.Group):
    """A group with the subcommands that plugins add to it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *plugin_commands(self.name or "")]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        added = plugin_commands(self.name or "")
        if cmd_name in self.commands or cmd_name not in added:
            return super().get_command(ctx, cmd_name)
        command: click.Command = added[cmd_name].load()
        _accept_global_options(command)
        return command


class _Commands(PluginGroup):
    """A group over `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        _accept_global_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            advice = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{advice}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        _show_logs(ctx.ensure_object(State))
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = ctx.invoked_subcommand or ""
            if error.ctx is None and (command := self.get_command(ctx, name)):
                error.ctx = click.Context(command, info_name=name, parent=ctx)  # whose help helps
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])
        if added := plugin_commands():
            with formatter.section("Commands of plugins"):
                formatter.write_dl(
                    [(name, f"from {entry.dist.name}") for name, entry in added.items()]  # type: ignore[union-attr]  # it was found in one
                )


def _print_version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"ppap {version()}")
    ctx.exit()


def version() -> str:
    """The version of the installed distribution."""
    from importlib import metadata

    try:
        return metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    "ppap",
    cls=_Commands,
    params=[
        *_global_options(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def ppap() -> None:
    """Steer a diffusion model by any off-the-shelf vision network.

    Diffusion models, guides, losses and adapters are plugins; `ppap plugins list` shows them.
    """


def colour() -> bool | None:
    """What NO_COLOR and FORCE_COLOR say about colours; None leaves it to the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: What was typed after `ppap`; None for `sys.argv`.
    """
    state = State()
    with state.afterwards:
        sys.exit(_run(arguments, state))


def _run(arguments: Sequence[str] | None, state: State) -> int:
    try:
        result = ppap.main(
            None if arguments is None else list(arguments),
            prog_name="ppap",
            standalone_mode=False,
            obj=state,
            color=colour(),
        )
    except Exception as error:
        if state.debug:
            import traceback

            traceback.print_exception(error)
        return _explain(error, state.debug)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return result if isinstance(result, int) else 0


def _explain(error: Exception, debug: bool) -> int:
    """Say what went wrong on stderr, in a line and a hint; the exit code for it."""
    code, hint = _BUG, ""
    match error:
        case PpapError():
            code, message, hint = error.exit_code, error.message, error.hint
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "ppap"
            code, message, hint = error.exit_code, error.format_message(), f"{path} --help"
        case click.ClickException():
            code, message = error.exit_code, error.format_message()
        case click.Abort():
            click.echo("ppap: interrupted", err=True)
            return _INTERRUPTED
        case ImportError() if not (error.name or "").startswith("ppap_framework"):
            message = f"the installation is not complete: {error}"
            hint = "`ppap doctor` looks into it"
        case OSError():  # a full disk, say: whatever is foreseen has become a PpapError
            where = "" if error.filename is None else f": {str(error.filename)!r}"
            message, hint = f"{error.strerror or error}{where}", "--debug shows what wanted it"
        case _ if is_out_of_memory(error):
            message, hint = f"out of memory: {error}", "a smaller --batch or --block takes less"
        case _:
            message = f"this is a bug in ppap: {type(error).__name__}: {error}"
            hint = "please report it" + ("" if debug else "; --debug shows the traceback")
    _say(message, hint)
    return code


def _say(message: str, hint: str) -> None:
    prefix = click.style("ppap: error:", fg="red", bold=True)
    click.echo(f"{prefix} {' '.join(message.split())}", err=True, color=colour())
    if hint:
        click.echo(f"hint: {' '.join(hint.split())}", err=True, color=colour())
