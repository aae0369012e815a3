"""`ppap evaluate`, `ppap bench`, `ppap bench speed` and `ppap report`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.config import (
    Command,
    backend_options,
    guide_options,
    option,
    problems_of,
    settings,
)
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


class _Bench(click.Group):
    """A group whose command may be left out: `ppap bench FILE` measures an experiment."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["rows", *args])


@click.group("bench", cls=_Bench, context_settings={"ignore_unknown_options": True})
def bench() -> None:
    """Measure time and memory: of an experiment's rows, or of one guided step.

    `ppap bench EXPERIMENT` is `ppap bench rows EXPERIMENT`.
    """


@bench.command("rows")
@_experiment_options
@click.option("--num", type=click.IntRange(1), help="Images at once; as the experiment says.")
@click.option("--rounds", type=click.IntRange(1), help="How often; as the experiment says.")
def rows(
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


@bench.command("speed", cls=Command)
@backend_options
@guide_options
@option("--target", help="What the guide should see.")
@option("--experts", help="As of `ppap run`.")
@settings("steps", "sampler", "device", "threads", "precision", batch=8)
@option("--rounds", default=7, help="Measurements of each part.")
@settings("json")
@click.pass_context
def speed(ctx: click.Context, /, **given: Any) -> None:
    """Measure a guided step, part by part.

    Beside each part: its share of what the machine can do at all, measured in the same process, and
    the same part in the style of the published code, with the same weights.
    """
    import torch

    from ppap_framework import run
    from ppap_framework.cli.guide_options import backend_of, guide_of, settings_of
    from ppap_plugin_bench.speed import speed

    problems = problems_of(ctx)
    if given["rounds"] < 1:
        problems.add("--rounds must be a whole number from 1", "use 7, say")
    sampling, compute = settings_of(given)
    problems.attempt(run.check, given["batch"], sampling, compute)
    request = given["guider"] and problems.attempt(guide_of, given)
    found = given["backend"] and problems.attempt(backend_of, given)
    problems.check()
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    asked = given["batch"], sampling, compute
    ours, published = (run.plan(found.load(), [request.load()], *asked) for _ in range(2))
    record = speed(ours, published, given["rounds"])
    if given["json"]:
        print_json(record)
        return
    lines = [
        (
            name,
            f"{1000 * part['seconds']:.3g}",
            f"{1000 * min(part['rounds']):.3g}",
            f"{1000 * max(part['rounds']):.3g}",
            f"{part['flops'] / 1e9:.3g}" if part["flops"] else "",
            f"{100 * part['share']:.0f} %" if part["flops"] else "",
            f"{1000 * part['published']:.3g}",
            f"{part['faster']:.2f}",
        )
        for name, part in record["parts"].items()
    ]
    headings = ["part", "ms", "from", "to", "GFLOP", "of the ceiling", "published style, ms"]
    print_table([*headings, "times faster"], lines)
    ceiling = ", ".join(f"{x / 1e9:.0f} GFLOP/s in a {k}" for k, x in record["ceiling"].items())
    click.echo(f"{record['batch']} images, {record['threads']} threads; ceiling {ceiling}")


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
