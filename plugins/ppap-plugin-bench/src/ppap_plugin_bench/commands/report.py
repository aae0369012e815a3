"""`ppap report`: figures as a page."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/results.md"),
    show_default=True,
    help="The page.",
)
def command(folder: Path, out: Path) -> None:
    """Write the figures in FOLDER, or in each folder in it, as Markdown with plots.

    Every number comes from the files that `ppap evaluate` wrote there; the same files give the same
    page.
    """
    from ppap_plugin_bench import report

    for path in report(folder, out):
        click.echo(path)
