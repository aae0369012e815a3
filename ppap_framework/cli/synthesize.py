"""`ppap synthesize`: draw the images that experts are trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli import State
from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import Command, option, problems_of
from ppap_framework.cli.output import print_json
from ppap_framework.errors import AssetError, UsageError

if TYPE_CHECKING:
    from ppap_framework import run as api

__all__ = ["command"]

_INTERRUPTED = 130
_SETTINGS = (
    *("num", "steps", "sampler", "eta", "seed", "block", "shard"),
    *("device", "threads"),
)


@click.command("synthesize", cls=Command)
@backend_options
@option("--out", required=True, metavar="FOLDER", help="Where to write, or to go on.")
@option("--num", type=int, default=2048, help="How many images.")
@option(
    "--prompts",
    metavar="FILE",
    help="What the model is told, a line for each image, from the top again where they end; left "
    "out, it is told nothing.",
)
@option("--steps", type=int, default=25, help="Steps from noise to image.")
@option("--sampler", type=click.Choice(["ddim", "ddpm"]), default="ddim", help="How to step.")
@option("--eta", type=float, default=0.0, help="Fresh noise in DDIM, from 0 to 1.")
@option("--seed", type=int, default=0, help="Image i is drawn from (seed, i).")
@option("--block", type=int, default=64, help="Images drawn at once.")
@option("--shard", type=int, default=512, help="Images in a file, a multiple of --block.")
@option("--device", default="auto", help="Such as cpu or cuda.")
@option("--threads", type=int, default=1, help="Of each worker, on the CPU.")
@option("--workers", type=int, help="Processes; as many as there are cores if left out, up to 8.")
@option("--overwrite", is_flag=True, help="Begin anew, whatever set is in the folder.")
@option("--json", is_flag=True, help="Print the manifest as JSON.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Draw the images that experts are trained on; nothing steers.

    Writes shards that webdataset reads, and manifest.json with hashes; prints the folder. Whatever
    ends it, the same command goes on where it was, and the bytes come out the same, on any number
    of workers.

    \b
    ppap synthesize --backend adm --num 2048 --out runs/synthetic
    """
    from ppap_framework.data import synthesize

    state = ctx.ensure_object(State)
    backend, settings = _prepare(given, problems_of(ctx))
    out = given["out"]
    try:
        with _progress(state) as watch:
            data = synthesize(
                backend,
                out=out,
                **settings,
                overwrite=given["overwrite"],
                progress=watch,
                command=["ppap", *sys.argv[1:]],
            )
    except KeyboardInterrupt:
        click.echo(f"ppap: interrupted; the same command goes on in {out}", err=True)
        return _INTERRUPTED
    if given["json"]:
        print_json({"folder": str(data.path), **data.manifest})
    else:
        click.echo(str(data.path))
    return 0


def _prepare(
    given: dict[str, Any], wrong: Sequence[UsageError]
) -> tuple[api.LoadedBackend, dict[str, Any]]:
    """Everything that can be wrong is found before weights are read, and reported at once."""
    import attrs

    from ppap_framework import run as api
    from ppap_framework.data import check_synthesis

    problems = api.Problems()
    problems.errors += wrong
    # What could not be read is None, and reported; the default stands in for it.
    defaults: dict[str | None, Any] = {p.name: p.default for p in command.params}
    kept = {name: defaults[name] if given[name] is None else given[name] for name in _SETTINGS}
    kept["workers"] = given["workers"]
    fields = attrs.fields_dict(api.Settings)
    settings = api.Settings(
        batch=kept["block"], **{name: value for name, value in kept.items() if name in fields}
    )
    with problems.collected():
        check_synthesis(
            Path(given["out"] or ".").expanduser(),
            settings,
            shard=kept["shard"],
            workers=kept["workers"],
            threads=kept["threads"],
        )
    with problems.collected():
        kept["prompts"] = _prompts(given["prompts"])
    found = []
    if given["backend"] is not None:
        with problems.collected():
            found.append(backend_of(given))
    problems.check()
    return found[0].load(), kept


def _prompts(path: str | None) -> list[str] | None:
    """The lines of a file that are not blank."""
    if path is None:
        return None
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise AssetError(
            f"cannot read the prompts in {path!r}: {reason}", hint="a text file, a prompt a line"
        ) from error
    if prompts := [line.strip() for line in lines if line.strip()]:
        return prompts
    raise UsageError(f"there are no prompts in {path!r}", hint="write one a line")


@contextmanager
def _progress(state: State) -> Iterator[Callable[[api.Progress], None] | None]:
    """A bar on stderr where that is a terminal."""
    if state.verbosity < 0 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        tasks: list[TaskID] = []

        def watch(progress: api.Progress) -> None:
            if not tasks:  # what earlier calls drew says nothing about speed
                tasks.append(bar.add_task("", completed=progress.steps, total=progress.of))
            bar.update(tasks[0], completed=progress.steps)

        yield watch
