"""What commands print: tables for people, JSON for machines. A table is what imports rich."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli import GlobalOptions

if TYPE_CHECKING:
    from rich.console import Console

_PIPED_WIDTH = 160


def console() -> Console:
    """Stdout for rich, which honours NO_COLOR and FORCE_COLOR; no text is taken for markup."""
    from rich.console import Console

    # A pipe has no width of its own, and 80 columns would break lines that somebody wants to grep.
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(
        width=_PIPED_WIDTH if piped else None, markup=False, emoji=False, highlight=False
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns' names."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")  # an ellipsis would hide what one came for
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_fields(title: str, fields: Mapping[str, Any]) -> None:
    """Print a title and what there is under it, a line each; what is empty is left out."""
    from rich.table import Table

    if not fields:
        return
    grid = Table.grid("", "", padding=(0, 2))
    grid.columns[1].overflow = "fold"
    for name, value in fields.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if text and value is not None:
            grid.add_row(f"  {name}", text)
    out = console()
    out.print(title, style="bold")
    out.print(grid)


def size_words(size: int) -> str:
    """A number of bytes with a unit."""
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= of:
            return f"{size / of:.{2 if unit == 'GB' else 0}f} {unit}"
    return f"{size} B"


def print_json(value: Any) -> None:
    """Print one JSON value."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def note(text: str) -> None:
    """Print a line about a result on stderr, unless -q was given."""
    if click.get_current_context().ensure_object(GlobalOptions).verbosity >= 0:
        click.echo(f"ppap: {text}", err=True)
