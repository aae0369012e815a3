"""Output of commands: tables for people, JSON for machines. Only tables import rich."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.global_options import GlobalOptions
from ppap_framework.errors import AssetError, Problems

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 160

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""An option, as the parameter `as_json`."""


def note(text: str) -> None:
    """Print a line on stderr, unless -q was given."""
    if click.get_current_context().ensure_object(GlobalOptions).verbosity >= 0:
        click.echo(f"ppap: {text}", err=True)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object] | Mapping[str, object]]
) -> None:
    """Print rows, each in order or by column names; None is an empty cell."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")  # not an ellipsis: every character matters
    for row in rows:
        cells = [row[column] for column in columns] if isinstance(row, Mapping) else row
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    _console().print(table)


def print_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Print a title and its fields, one per line; empty fields are left out."""
    from rich.table import Table

    if not fields:
        return
    grid = Table.grid("", "", padding=(0, 2))
    grid.columns[1].overflow = "fold"
    for name, value in fields.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if text and value is not None:
            grid.add_row(f"  {name}", text)
    out = _console()
    out.print(title, style="bold")
    out.print(grid)


def print_verified(
    results: list[dict[str, Any]], good: str, line: str, problems: Problems, as_json: bool
) -> int:
    """Print which files are undamaged, and return the exit code.

    Args:
        results: A record of each file, which gets the message of its problem as "fault".
        good: Key of whether it is undamaged.
        line: Format string for an undamaged file's record.
        problems: Problems of the other files, in order.
        as_json: Print the records instead.

    Raises:
        AssetError: The problems, unless as JSON.
    """
    errors = iter(problems.errors)
    for result in results:
        if not result[good]:
            result["fault"] = next(errors).message
        elif not as_json:
            click.echo(line.format(**result))
    if as_json:
        print_json(results)
        return AssetError.exit_code if problems.errors else 0
    problems.check()
    return 0


def size_words(size: int) -> str:
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= of:
            return f"{size / of:.{2 if unit == 'GB' else 0}f} {unit}"
    return f"{size} B"


def _console() -> Console:
    """Stdout for rich, without markup; honours NO_COLOR and FORCE_COLOR."""
    from rich.console import Console

    # A pipe has no width of its own, and lines broken at 80 columns are hard to grep.
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(
        width=_PIPED_WIDTH if piped else None, markup=False, emoji=False, highlight=False
    )
