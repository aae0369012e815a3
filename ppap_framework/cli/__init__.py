"""The command line: `ppap --help` imports click and nothing heavier.

A command is the click command `command` of a module that is imported when it is typed; it returns
None or its exit code. Results go to stdout; errors, logs and progress to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

from ppap_framework.cli.global_options import GlobalOptions, global_options
from ppap_framework.cli.groups import Group
from ppap_framework.errors import PpapError, is_out_of_memory

__all__ = ["COMMANDS", "GlobalOptions", "color", "main", "ppap"]

COMMANDS = {
    "run": "Draw images from a diffusion model, steered by guides.",
    "synthesize": "Draw the images that experts are trained on, without guides.",
    "transfer": "Train experts: a network learns to answer to noisy images as it does to clean "
    "ones.",
    "adapt": "Make a network read a diffusion model's noise: synthesize, then transfer.",
    "diagnose": "Measure what a network understands of noised images, and what its experts do.",
    "data": "Look at the images that `ppap synthesize` drew.",
    "experts": "Show, check and calibrate experts.",
    "checkpoints": "Show, download, check and convert the weights that plugins know.",
    "config": "Show the values of options, and where they come from.",
    "plugins": "Show what is installed.",
    "doctor": "Check the installation and every plugin.",
}
"""Each command, in the module `ppap_framework.cli.NAME`, and its summary."""

_BUG = 1
_INTERRUPTED = 130


class _Commands(Group):
    prefix = ""

    def summaries(self) -> Mapping[str, str]:
        return COMMANDS

    def core_command(self, name: str) -> click.Command:
        command: click.Command = importlib.import_module(f"ppap_framework.cli.{name}").command
        return command


def _print_version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"ppap {version()}")
        ctx.exit()


def version() -> str:
    from importlib import metadata

    try:
        return metadata.version("ppap-framework")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    "ppap",
    cls=_Commands,
    params=[
        *global_options(hidden=False),
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
@click.pass_obj
def ppap(options: GlobalOptions) -> None:
    """Steer a diffusion model by any off-the-shelf vision network.

    Diffusion models, guides, losses and adapters are plugins; `ppap plugins list` shows them.
    """
    options.show_logs()


def color() -> bool | None:
    """Whether NO_COLOR and FORCE_COLOR allow colors; None leaves it to the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, by default that of `sys.argv`, and exit with its code."""
    options = GlobalOptions()
    with options.afterwards:
        _end_as_interrupted(options)
        try:
            result = ppap.main(
                arguments, prog_name="ppap", standalone_mode=False, obj=options, color=color()
            )
        except Exception as error:
            result = _explain(error, options)
        except KeyboardInterrupt:
            result = _INTERRUPTED
        sys.exit(result if isinstance(result, int) else 0)


def _end_as_interrupted(options: GlobalOptions) -> None:
    """Make SIGTERM end a command as Ctrl-C does, so that it is recorded."""
    import signal

    with contextlib.suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        options.afterwards.callback(signal.signal, signal.SIGTERM, before)


def _explain(error: Exception, options: GlobalOptions) -> int:
    """Print an error and a hint on stderr, a line each; returns the exit code."""
    if options.debug:
        import traceback

        traceback.print_exception(error)
    code, hint = _BUG, ""
    match error:
        case PpapError():
            code, message, hint = error.exit_code, error.message, error.hint
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else options.command
            code, message, hint = error.exit_code, error.format_message(), f"{path} --help"
        case click.ClickException():
            code, message = error.exit_code, error.format_message()
        case click.Abort():
            click.echo(f"ppap: {'; '.join(['interrupted', *filter(None, error.args)])}", err=True)
            return _INTERRUPTED
        case ImportError() if not (error.name or "").startswith("ppap_framework"):
            message = f"the installation is not complete: {error}"
            hint = "`ppap doctor` looks into it"
        case OSError():  # unforeseen, such as a full disk
            where = "" if error.filename is None else f": {str(error.filename)!r}"
            message, hint = f"{error.strerror or error}{where}", "--debug shows the traceback"
        case _ if is_out_of_memory(error):
            message, hint = f"out of memory: {error}", "a smaller --batch takes less"
        case _:
            message = f"this is a bug in {options.author}: {type(error).__name__}: {error}"
            hint = "please report it" + ("" if options.debug else "; --debug shows the traceback")
    prefix = click.style("ppap: error:", fg="red", bold=True)
    click.echo(f"{prefix} {' '.join(message.split())}", err=True, color=color())
    if hint:
        click.echo(f"hint: {' '.join(hint.split())}", err=True, color=color())
    return code
