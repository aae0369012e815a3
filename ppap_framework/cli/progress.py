"""The progress bar of long commands, and the message of an interrupt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ppap_framework.cli import GlobalOptions

if TYPE_CHECKING:
    from ppap_framework.runtime import Progress, Watch


@contextmanager
def progress(interrupted: str = "", *, lines: bool = False) -> Iterator[Watch | None]:
    """A context that shows the progress of a long computation on stderr.

    Args:
        interrupted: Message of an interrupt: what is left and how to continue.
        lines: Whether to print a line for each task if stderr is no terminal.

    Yields:
        The function to call with the progress; None if nothing is shown, as with `-q`.

    Raises:
        click.Abort: On Ctrl-C or SIGTERM; `main` prints `interrupted` and exits with 130.
    """
    quiet = click.get_current_context().ensure_object(GlobalOptions).verbosity < 0
    terminal = sys.stderr.isatty()
    try:
        if terminal and not quiet:
            with _bars() as watch:
                yield watch
        else:
            yield _lines() if lines and not quiet else None
    except KeyboardInterrupt:
        raise click.Abort(interrupted) from None


@contextmanager
def _bars() -> Iterator[Watch]:
    """A bar for each task, until it is done and another begins."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    percentage = TextColumn("{task.percentage:.0f} % {task.fields[detail]}")
    columns = (TextColumn("{task.description}"), BarColumn(), percentage, TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def watch(now: Progress) -> None:
            shown = {bar.description: bar for bar in bars.tasks}
            if now.task not in shown:
                for finished in (bar for bar in shown.values() if bar.finished):
                    bars.remove_task(finished.id)
                # Steps of earlier calls count as completed and do not affect the speed.
                bars.add_task(now.task, completed=now.done, total=now.total, detail=now.detail)
            else:
                bar = shown[now.task].id
                bars.update(bar, completed=now.done, total=now.total, detail=now.detail)

        yield watch


def _lines() -> Watch:
    begun: set[str] = set()

    def watch(now: Progress) -> None:
        if now.task not in begun:
            begun.add(now.task)
            click.echo(f"ppap: {now.task}", err=True)

    return watch
