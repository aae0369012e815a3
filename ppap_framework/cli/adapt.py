"""`ppap adapt`: from a diffusion model and a network to experts, in one command."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli import State
from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import Command, problems_of
from ppap_framework.cli.output import print_json
from ppap_framework.cli.training_options import (
    adapters_of,
    boundaries_of,
    bundle_record,
    guide_options,
    option,
    progress_bars,
    recipe_of,
    show_bundle,
    teacher_of,
    training_options,
)

if TYPE_CHECKING:
    from ppap_framework.learn import Boundaries

__all__ = ["command"]

_INTERRUPTED = 130


@click.command("adapt", cls=Command)
@backend_options
@guide_options
@option("--num", type=int, default=2048, help="How many images the diffusion model draws.")
@option("--steps", type=int, default=25, help="Steps from noise to each.")
@option("--workers", type=int, help="Processes that draw; as many as cores if left out, up to 8.")
@partial(training_options, calibrate=True)
@option("--seed", type=int, default=0, help="Of the images and of the training.")
@option(
    "--out",
    metavar="FOLDER",
    help="Where to write, or to go on; runs/adapt/BACKEND-GUIDER-N if left out.",
)
@option("--device", default="auto", help="Such as cpu or cuda.")
@option("--overwrite", is_flag=True, help="Begin anew, whatever is in the folder.")
@option("--json", is_flag=True, help="Print what became of it as JSON.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Make a network understand a diffusion model's noise: synthesize, then transfer.

    No data and no labels are needed. The experts are then found by `ppap run` itself. Whatever ends
    it, the same command goes on where it was.

    \b
    ppap adapt --backend adm --guider classifier
    ppap run --backend adm --guider classifier --target "red cube"
    """
    from ppap_framework.learn import adapt, check_adapt
    from ppap_framework.run import Problems

    state = ctx.ensure_object(State)
    problems = Problems()
    problems.errors += problems_of(ctx)
    problems.check()
    recipe = recipe_of(given)
    found, learner, boundaries, adapters = [], [], None, None
    with problems.collected():
        boundaries = boundaries_of(given["boundaries"])
    out = Path(given["out"] or _default_out(given, boundaries)).expanduser()
    with problems.collected():
        check_adapt(
            out,
            recipe,
            num=given["num"],
            steps=given["steps"],
            seed=given["seed"],
            workers=given["workers"],
            num_experts=given["num_experts"],
            boundaries=boundaries,
            name=given["name"],
            device=given["device"],
        )
    with problems.collected():
        found.append(backend_of(given))
    with problems.collected():
        adapters = adapters_of(given["adapter"])
    if not problems.errors:
        with problems.collected():
            learner.append(teacher_of(given))
    problems.check()
    assert adapters is not None
    try:
        with progress_bars(state) as (drawing, learning, calibrating):
            bundle = adapt(
                found[0].load(),
                learner[0],
                out=out,
                num=given["num"],
                steps=given["steps"],
                num_experts=given["num_experts"],
                boundaries=boundaries,
                adapters=adapters,
                seed=given["seed"],
                recipe=recipe,
                workers=given["workers"],
                name=given["name"],
                device=given["device"],
                keep=given["keep"],
                overwrite=given["overwrite"],
                calibrate=given["calibrate"],
                calibrating=calibrating,
                drawing=drawing,
                learning=learning,
                command=["ppap", *sys.argv[1:]],
            )
    except KeyboardInterrupt:
        click.echo(f"ppap: interrupted; the same command goes on in {out}", err=True)
        return _INTERRUPTED
    if given["json"]:
        print_json(bundle_record(bundle))
    else:
        show_bundle(bundle)
    return 0


def _default_out(given: dict[str, Any], boundaries: Boundaries) -> str:
    parts = [Path(given[name].rpartition(":")[2]).name for name in ("backend", "guider")]
    if boundaries == "auto":
        parts += [str(n) for n in [given["num_experts"]] if n] + ["auto"]
    else:
        follows = 5 if boundaries is None else len(boundaries) + 1
        parts.append(str(given["num_experts"] or follows))
    return f"runs/adapt/{'-'.join(parts)}"
