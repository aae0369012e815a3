"""`ppap evaluate`: measure the rows of an experiment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli import State
from ppap_framework.cli.output import print_json, print_table

if TYPE_CHECKING:
    from ppap_plugin_bench import Experiment
    from ppap_plugin_bench.measurement import Watch

__all__ = ["command", "experiment_options", "read", "set_threads"]

_FIGURES = ("fid", "recall", "spread")


def experiment_options(command: Any) -> Any:
    """The argument and options that commands about experiments share."""
    for decorate in (
        click.option("--threads", type=click.IntRange(1), help="On the CPU; as torch likes."),
        click.option("--device", default="auto", show_default=True, help="Such as cpu or cuda."),
        click.option("--rows", metavar="A,B", help="Only these rows."),
        click.option("--reference", metavar="PATH", help="Labelled pictures: .npz or folder."),
        click.argument("experiment", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def read(path: Path, **changes: str | None) -> Experiment:
    """The experiment of a file, with what the command line says instead."""
    from ppap_plugin_bench import read_experiment

    return read_experiment(path, **{k: value for k, value in changes.items() if value is not None})


def set_threads(threads: int | None) -> None:
    """Let torch use so many threads."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def split_rows(rows: str | None) -> list[str] | None:
    """Names with commas between them."""
    return None if rows is None else [name.strip() for name in rows.split(",")]


@click.command("evaluate")
@experiment_options
@click.option("--judge", metavar="GUIDER:CHECKPOINT", help="A classifier that never guides.")
@click.option("--out", type=click.Path(path_type=Path), help="For figures; runs/evaluate/NAME.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="For images; runs/evaluate/NAME/images."
)
@click.option("--time-again", is_flag=True, help="Measure time and memory though they are known.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows' files as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    experiment: Path,
    reference: str | None,
    rows: str | None,
    device: str,
    threads: int | None,
    judge: str | None,
    out: Path | None,
    images: Path | None,
    time_again: bool,
    as_json: bool,
) -> None:
    """Measure the rows of EXPERIMENT, a TOML or JSON file.

    Chooses each row's scale on seeds of its own, draws its images, lets the judge look at them, and
    writes a small JSON file for each row. Images are kept, and what is there is not drawn again:
    after a kill the same command goes on. `ppap report` makes tables of the files.
    """
    from ppap_plugin_bench import evaluate
    from ppap_plugin_bench.cells import number, spoken
    from ppap_plugin_bench.files import read_json

    state = ctx.ensure_object(State)
    set_threads(threads)
    found = read(experiment, judge=judge, reference=reference)
    home = Path("runs") / "evaluate" / found.name
    with _progress(state) as watch:
        paths = evaluate(
            found,
            out or home,
            images or home / "images",
            rows=split_rows(rows),
            device=device,
            time_again=time_again,
            command=["ppap", *sys.argv[1:]],
            watch=watch,
        )
    records = [read_json(path) for path in paths]
    figures = [*found.shown, *_FIGURES]
    if as_json:
        print_json(records)
        return
    print_table(
        ["row", *map(spoken, figures), "seconds", "file"],
        [
            (
                record["name"],
                *(number(name, record["figures"][name]["value"]) for name in figures),
                f"{record['cost']['seconds']:.3g}" if record["cost"] else "",
                str(path),
            )
            for record, path in zip(records, paths, strict=True)
        ],
    )


@contextmanager
def _progress(state: State) -> Iterator[Watch]:
    """A bar on stderr where that is a terminal, and else a line for each thing that is begun."""
    if state.verbosity < 0:
        yield lambda what, done, of: None
        return
    if not sys.stderr.isatty():
        begun: set[str] = set()

        def say(what: str, done: int, of: int) -> None:
            if what not in begun:
                begun.add(what)
                click.echo(f"ppap: {what}", err=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, of: bar.update(task, description=what, completed=done, total=of)
