"""Output of commands: tables for people, JSON for machines, progress and the end of an interrupt.

Rich is imported by what draws tables and bars only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.groups import GlobalOptions
from ppap_framework.errors import AssetError, PpapError, Problems

if TYPE_CHECKING:
    from rich.console import Console

    from ppap_framework.runtime import Progress, Watch

_NARROWEST = 60  # in less, tables are empty

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""An option, as the parameter `as_json`."""


def note(text: str) -> None:
    """Print a line on stderr, unless -q was given."""
    if not _is_quiet():
        click.echo(f"ppap: {text}", err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(
    columns: Sequence[str], rows: Collection[Iterable[object] | Mapping[str, Any]]
) -> None:
    """Print rows, if any, each in order or by column names; None is an empty cell."""
    from rich import box
    from rich.table import Table

    if not rows:
        return
    in_order = [map(row.get, columns) if isinstance(row, Mapping) else row for row in rows]
    cells = [[_cell(value) for value in row] for row in in_order]
    table, out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)), _console()
    lengths = [max(map(len, column)) + 2 for column in zip(columns, *cells, strict=True)]
    for heading, length in zip(columns, lengths, strict=True):
        # Short columns are whole; the others wrap, without an ellipsis: every character matters.
        whole = sum(other for other in lengths if other <= length) <= out.width * 3 // 4
        table.add_column(heading, overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(*row)
    out.print(table)


def print_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Print a title and its fields, one per line; nested ones with dots, without empty ones."""
    shown = {name: text for name, value in _flat(fields) if (text := _cell(value))}
    out, length = _console(), max(map(len, shown), default=0)
    if fields:
        out.print(title, style="bold")
    for name, text in shown.items():
        wrapped = textwrap.TextWrapper(out.width, f"  {name:<{length}}  ", " " * (length + 4))
        wrapped.break_long_words = wrapped.break_on_hyphens = False  # a path stays in one piece
        out.print(wrapped.fill(text), soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _flat(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = {part.get("name", index): part for index, part in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def print_verified(
    files: Iterable[tuple[str, Any]],
    check: Callable[[Any], dict[str, Any]],
    blank: Mapping[str, Any],
    line: str,
    as_json: bool,
) -> int:
    """Check named files, print which are undamaged, and return the exit code.

    `check` returns facts about a file, or raises. `blank` has the keys of a file's record: its
    name, whether it is undamaged, and the facts; `line` formats it.
    """
    name_key, good, *_ = blank
    records, problems = [], Problems()
    for name, file in files:
        record = {**blank, name_key: name, good: False, "fault": None}
        try:
            record |= {**check(file), good: True}
            if not as_json:
                click.echo(line.format(**record))
        except PpapError as error:
            problems.errors.append(error)
            record["fault"] = error.message
        records.append(record)
    if as_json:
        print_json(records)
        return AssetError.exit_code if problems.errors else 0
    problems.check()
    return 0


def size_words(size: int | None) -> str:
    """A number of bytes in the largest unit; empty if it is unknown."""
    from rich.filesize import decimal

    return "" if size is None else decimal(size)


@contextlib.contextmanager
def progress(interrupted: str = "") -> Iterator[Watch | None]:
    """A context that shows the progress of a long computation on stderr.

    It yields what to call with the progress; None if nothing is shown, as with `-q`. On Ctrl-C or
    SIGTERM it raises `click.Abort`: `main` prints `interrupted`, how to go on, and exits with 130.
    """
    stdout = sys.stdout
    try:
        if sys.stderr.isatty() and not _is_quiet():
            with _bars() as watch:
                yield watch
        else:
            yield None
    except KeyboardInterrupt:
        raise click.Abort(interrupted) from None
    finally:
        sys.stdout = stdout  # an interrupt may leave it where the prints of plugins go


@contextlib.contextmanager
def _bars() -> Iterator[Watch]:
    """A bar for each task, until it is done and another begins."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    percentage = TextColumn("{task.percentage:.0f} % {task.fields[detail]}")
    columns = (TextColumn("{task.description}"), BarColumn(), percentage, TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def watch(now: Progress) -> None:
            shown = {bar.description: bar.id for bar in bars.tasks}
            if now.task not in shown:
                for finished in (bar for bar in bars.tasks if bar.finished):
                    bars.remove_task(finished.id)
                # Steps of earlier calls count as completed and do not affect the speed.
                shown[now.task] = bars.add_task(now.task, completed=now.done, detail="")
            bars.update(shown[now.task], completed=now.done, total=now.total, detail=now.detail)

        yield watch


def _is_quiet() -> bool:
    return click.get_current_context().ensure_object(GlobalOptions).verbosity < 0


def _console() -> Console:
    """Stdout for rich, without markup; honours NO_COLOR and FORCE_COLOR."""
    from rich.console import Console

    # A pipe has no width of its own; programs read --json.
    width = shutil.get_terminal_size((120, 0)).columns
    return Console(width=max(width, _NARROWEST), markup=False, emoji=False, highlight=False)
