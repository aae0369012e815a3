"""The options that every command takes: `-v`, `-q` and `--debug`, before or behind its name."""

from __future__ import annotations

import contextlib
from typing import Any

import click


class GlobalOptions:
    """Values of the global options; `click.Context.obj` of every command.

    Attributes:
        verbosity: 0 shows warnings and progress; each `-v` adds one and each `-q` takes one.
        debug: Whether errors show their traceback.
        command: The command that was typed, such as "ppap run".
        author: The distribution that supplies it.
        afterwards: What `main` restores on exit: a process may run several commands.
    """

    def __init__(self) -> None:
        self.verbosity = 0
        self.debug = False
        self.command = "ppap"
        self.author = "ppap"
        self.afterwards = contextlib.ExitStack()

    def set_log_level(self) -> None:
        import logging

        levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
        ours = logging.getLogger("ppap_framework")
        self.afterwards.callback(ours.setLevel, ours.level)
        ours.setLevel(levels[max(-1, min(self.verbosity, 2))])

    def show_logs(self) -> None:
        """Log to stderr, unless the caller of `main` has set up logging."""
        import logging

        root = logging.getLogger()
        if not root.handlers:
            stderr = logging.StreamHandler()
            stderr.setFormatter(logging.Formatter("ppap: %(message)s"))
            root.addHandler(stderr)
            self.afterwards.callback(root.removeHandler, stderr)


def _add(ctx: click.Context, option: click.Parameter, value: int) -> None:
    """Add an option's value to the one given before the command's name."""
    options = ctx.ensure_object(GlobalOptions)
    if option.name == "debug":
        options.debug = options.debug or bool(value)
    elif value:
        options.verbosity += value if option.name == "verbose" else -value
        options.set_log_level()


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """The options, shown in the help of `ppap` and hidden in that of each command."""
    common: dict[str, Any] = {"callback": _add, "expose_value": False, "hidden": hidden}
    return [
        click.Option(["-v", "--verbose"], count=True, help="Log more.", **common),
        click.Option(["-q", "--quiet"], count=True, help="Log less.", **common),
        click.Option(["--debug"], is_flag=True, help="Show tracebacks.", **common),
    ]


_EVERYWHERE = global_options(hidden=True)


def accept_global_options(command: click.Command) -> None:
    """Add the global options to a command and its subcommands; their own of the same name win."""
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in _EVERYWHERE if not taken.intersection(option.opts)]
    if isinstance(command, click.Group):
        for child in command.commands.values():
            accept_global_options(child)
