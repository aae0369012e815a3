"""The command line: `ppap --help` imports click and nothing heavier.

A command is a click command of a module that is imported when it is typed; it returns None or its
exit code. Results go to stdout; errors, logs and progress to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from ppap_framework.cli.groups import GlobalOptions, Group, global_options
from ppap_framework.errors import PpapError, UsageError, is_out_of_memory

__all__ = ["COMMANDS", "color", "core_command", "main", "ppap"]

COMMANDS = {
    "run": "Draw images from a diffusion model, steered by guides.",
    "synthesize": "Draw the images that experts are trained on, without guides.",
    "transfer": "Train experts: a network learns to answer to noisy images as it does to clean "
    "ones.",
    "adapt": "Make a network read a diffusion model's noise: synthesize, then transfer.",
    "data": "Look at the images that `ppap synthesize` drew.",
    "experts": "Show, check and calibrate experts.",
    "checkpoints": "Show, download, check and convert the weights that plugins know.",
    "config": "Show the values of options, and where they come from.",
    "plugins": "Show what is installed.",
    "doctor": "Check the installation and every plugin.",
}
"""Each command and its summary."""

_TRAINING = ("synthesize", "data", "transfer", "adapt")
"""Commands of the module `training`; others are `command` in a module of their own name."""

_BUG = 1
_INTERRUPTED = 130


def core_command(name: str) -> click.Command:
    """A command of the core, imported."""
    module, attribute = ("training", name) if name in _TRAINING else (name, "command")
    home = importlib.import_module(f"ppap_framework.cli.{module}")
    return getattr(home, attribute)  # type: ignore[no-any-return]


class _Commands(Group):
    def summaries(self) -> Mapping[str, str]:
        return COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            self.commands[cmd_name] = core_command(cmd_name)
        return super().get_command(ctx, cmd_name)


def _print_version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    from ppap_framework.files import core_version

    if value:
        click.echo(f"ppap {core_version()}")
        ctx.exit()


_VERSION: Any = {"is_flag": True, "is_eager": True, "expose_value": False}
_VERSION["callback"] = _print_version


@click.group(
    cls=_Commands,
    params=global_options(hidden=False),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", help="Show the version and exit.", **_VERSION)
@click.pass_obj
def ppap(options: GlobalOptions) -> None:
    """Steer a diffusion model by any off-the-shelf vision network.

    Diffusion models, guides, losses and adapters are plugins; `ppap plugins list` shows them.
    `eval "$(_PPAP_COMPLETE=bash_source ppap)"` makes bash complete what is typed; zsh_source and
    fish_source are for other shells.
    """
    import logging

    root = logging.getLogger()
    if not root.handlers:  # else the caller of `main` has set up logging
        stderr = logging.StreamHandler()
        stderr.setFormatter(logging.Formatter("ppap: %(message)s"))
        root.addHandler(stderr)
        options.afterwards.callback(root.removeHandler, stderr)


def color() -> bool | None:
    """Whether NO_COLOR and FORCE_COLOR allow colors; None leaves it to the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, by default that of `sys.argv`, and exit with its code."""
    import signal

    options = GlobalOptions()
    with options.afterwards:
        for name in ("stdin", "stdout", "stderr"):  # None if it is closed, as by `2>&-`
            # While a word is completed, nobody wants to read of faults.
            unwanted = name == "stderr" and "_PPAP_COMPLETE" in os.environ
            if getattr(sys, name) is None or unwanted:
                setattr(sys, name, open(os.devnull, "r+"))  # noqa: PTH123, SIM115  # stays open
        with contextlib.suppress(ValueError):  # not in the main thread
            # SIGTERM ends a command as Ctrl-C does, so that it is recorded.
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)
            options.afterwards.callback(signal.signal, signal.SIGTERM, before)
        if os.environ.get("RANK", "0") != "0":  # the first process of a launch speaks for all
            options.verbosity = -1
            nothing = open(os.devnull, "w")  # noqa: PTH123, SIM115  # closed below
            options.afterwards.enter_context(nothing)
            options.afterwards.enter_context(contextlib.redirect_stdout(nothing))
        try:
            result = ppap.main(
                arguments, prog_name="ppap", standalone_mode=False, obj=options, color=color()
            )
        except Exception as error:
            result = _explain(error, options)
        except KeyboardInterrupt:
            result = _INTERRUPTED
        sys.exit(result if isinstance(result, int) else 0)


def _explain(error: Exception, options: GlobalOptions) -> int:
    """Print an error and a hint on stderr, a line each; returns the exit code."""
    if options.debug:
        import traceback

        traceback.print_exception(error)
    code, hint = _BUG, "" if options.debug else "--debug shows the traceback"
    match error:
        case UsageError() if os.environ.get("RANK", "0") != "0":
            return error.exit_code
        case PpapError():
            code, message, hint = error.exit_code, error.message, error.hint
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.ClickException():
            code, message, hint = error.exit_code, error.format_message(), ""
            if isinstance(error, click.UsageError):
                hint = f"{error.ctx.command_path if error.ctx else options.command} --help"
        case click.Abort():
            said = error.args or getattr(error.__cause__, "args", ())
            click.echo(f"ppap: {'; '.join(['interrupted', *filter(None, said)])}", err=True)
            return _INTERRUPTED
        case ImportError() if not (error.name or "").startswith("ppap_framework"):
            message = f"the installation is not complete: {error}"
            hint = "`ppap doctor` looks into it"
        case OSError():  # unforeseen, such as a full disk
            where = "" if error.filename is None else f": {str(error.filename)!r}"
            message = f"{error.strerror or error}{where}"
        case _ if is_out_of_memory(error):
            message, hint = f"out of memory: {error}", "a smaller --batch takes less"
        case _:
            message = f"this is a bug in {options.author}: {type(error).__name__}: {error}"
            hint = "; ".join(filter(None, ["please report it", hint]))
    lines = [f"{click.style('ppap: error:', fg='red', bold=True)} {message}", f"hint: {hint}"]
    for line in lines if hint else lines[:1]:
        click.echo(" ".join(line.split()), err=True, color=color())
    return code
