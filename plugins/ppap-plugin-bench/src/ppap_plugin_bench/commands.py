"""`ppap evaluate`, `ppap bench` and `ppap report`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.output import note, print_json, print_table, progress

_PATH = click.Path(path_type=Path)


def _names(ctx: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",")]


def _experiment_options(command: Any) -> Any:
    """Common argument and options of experiment commands."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--threads", type=click.IntRange(1), help="On the CPU; as torch likes."),
        click.option("--device", default="auto", show_default=True, help="Such as cpu or cuda."),
        click.option("--rows", metavar="A,B", callback=_names, help="Only these rows."),
        click.option("--reference", metavar="PATH", help="Labelled pictures: .npz or folder."),
        click.argument("experiment", type=_PATH),
    ):
        command = decorate(command)
    return command


def _read(path: Path, threads: int | None, **changes: Any) -> Any:
    """Read an experiment with changes from the command line."""
    import torch

    from ppap_plugin_bench import read_experiment

    if threads is not None:
        torch.set_num_threads(threads)
    return read_experiment(path, **{k: value for k, value in changes.items() if value is not None})


@click.command("evaluate")
@_experiment_options
@click.option("--judge", metavar="GUIDER:CHECKPOINT", help="A classifier that never guides.")
@click.option("--out", type=_PATH, help="Folder of figures; runs/evaluate/NAME.")
@click.option("--images", type=_PATH, help="Folder of images; runs/evaluate/NAME/images.")
@click.option("--num", type=click.IntRange(1), help="Images in a row; as the experiment says.")
@click.option("--time-again", is_flag=True, help="Measure time and memory even if known.")
def evaluate(
    experiment: Path,
    reference: str | None,
    threads: int | None,
    as_json: bool,
    judge: str | None,
    out: Path | None,
    images: Path | None,
    num: int | None,
    **how: Any,  # rows, device and time_again
) -> None:
    """Measure the rows of EXPERIMENT, a TOML or JSON file.

    Draws each row at each of its scales, calibrates guides that have no curve, lets the judges look
    at the images, and writes a small JSON file for each row. Images are kept and never drawn twice:
    after a kill the same command goes on. `ppap report` makes a page of the files.
    """
    import ppap_plugin_bench as bench
    from ppap_framework.files import read_json
    from ppap_plugin_bench.markdown import number, spoken

    found = _read(experiment, threads, judge=judge, reference=reference, num=num)
    home = Path("runs") / "evaluate" / found.name
    begun = functools.cache(note)  # without a bar, a line for each task
    with progress("the images so far are kept; the same command goes on") as watch:
        paths = bench.evaluate(
            found,
            out or home,
            images or home / "images",
            command=["ppap", *sys.argv[1:]],
            progress=watch or (lambda now: begun(now.task)),
            **how,
        )
    records = [read_json(path) for path in paths]
    if as_json:
        print_json(records)
        return
    figures = [*found.shown, "fid", "recall", "spread"]
    lines = [
        (
            record["name"],
            *(number(name, record["figures"][name]["value"]) for name in figures),
            f"{record['cost']['seconds']:.3g}" if record["cost"] else "",
            str(path),
        )
        for record, path in zip(records, paths, strict=True)
    ]
    print_table(["row", *map(spoken, figures), "seconds", "file"], lines)


@click.command("bench")
@_experiment_options
@click.option("--num", type=click.IntRange(1), help="Images at once; as the experiment says.")
@click.option("--rounds", type=click.IntRange(1), help="How often; as the experiment says.")
def bench(
    experiment: Path,
    reference: str | None,
    threads: int | None,
    as_json: bool,
    num: int | None,
    rounds: int | None,
    **how: Any,  # rows and device
) -> None:
    """Measure time and memory of the rows of EXPERIMENT.

    Rows take turns; the median counts.
    """
    import attrs

    from ppap_plugin_bench import bench

    found = _read(experiment, threads, reference=reference)
    timing = attrs.evolve(
        found.timing, num=num or found.timing.num, rounds=rounds or found.timing.rounds
    )
    costs = bench(attrs.evolve(found, timing=timing), **how)
    if as_json:
        print_json(costs)
        return
    lines = [
        (
            name,
            f"{cost['seconds']:.3g}",
            f"{min(cost['rounds']):.3g}",
            f"{max(cost['rounds']):.3g}",
            f"{1000 * cost['seconds'] / cost['steps']:.3g}",
            f"{cost['peak_memory'] / 2**20:.0f}" if cost["peak_memory"] else "",
        )
        for name, cost in costs.items()
    ]
    headings = ["row", "seconds an image", "from", "to", "ms a step", "peak memory, MiB"]
    print_table(headings, lines)


@click.command("report")
@click.argument("folder", type=_PATH)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("docs/results.md"),
    show_default=True,
    help="The page.",
)
def report(folder: Path, out: Path) -> None:
    """Write the figures in FOLDER, or in each folder in it, as Markdown with plots.

    Every number comes from the files that `ppap evaluate` wrote there; the same files give the same
    page.
    """
    from ppap_plugin_bench import report

    for path in report(folder, out):
        click.echo(path)
