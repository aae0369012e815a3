"""`ppap transfer`: experts learn from a synthetic set what their teacher says of clean images."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

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

__all__ = ["command"]

_INTERRUPTED = 130


@click.command("transfer", cls=Command)
@backend_options
@guide_options
@option("--data", required=True, metavar="FOLDER", help="What `ppap synthesize` drew.")
@option("--out", required=True, metavar="FOLDER", help="Where to write, or to go on.")
@partial(training_options, calibrate=False)
@option(
    "--supervised",
    is_flag=True,
    help="--data is an NPZ file with images and labels, and experts learn the labels.",
)
@option("--seed", type=int, default=0, help="Of the order of images and of noise.")
@option("--device", default="auto", help="Such as cpu or cuda.")
@option("--overwrite", is_flag=True, help="Begin anew, whatever training is in the folder.")
@option("--json", is_flag=True, help="Print what became of it as JSON.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Train experts: a network on noised images learns what it says of clean ones.

    Writes NAME.experts.safetensors, a log, and a plot of the losses. Whatever ends it, the same
    command goes on where it was.

    \b
    ppap transfer --backend adm --guider classifier --data runs/synthetic --out runs/experts
    """
    from ppap_framework.data import LabelledImages, SyntheticData
    from ppap_framework.learn import check_transfer, transfer
    from ppap_framework.run import Problems

    state = ctx.ensure_object(State)
    problems = Problems()
    problems.errors += problems_of(ctx)
    problems.check()
    recipe, out = recipe_of(given), Path(given["out"]).expanduser()
    found, data, learner, boundaries, adapters = [], [], [], None, None
    with problems.collected():
        boundaries = boundaries_of(given["boundaries"])
    with problems.collected():
        check_transfer(
            out,
            recipe,
            num_experts=given["num_experts"],
            boundaries=boundaries,
            name=given["name"],
            device=given["device"],
        )
    with problems.collected():
        found.append(backend_of(given))
    with problems.collected():
        data.append((LabelledImages if given["supervised"] else SyntheticData)(given["data"]))
    with problems.collected():
        adapters = adapters_of(given["adapter"])
    if not problems.errors:
        with problems.collected():
            learner.append(teacher_of(given))
    problems.check()
    assert adapters is not None
    try:
        with progress_bars(state) as (_, watch, calibrating):
            bundle = transfer(
                found[0].load(),
                learner[0],
                data[0],
                out=out,
                num_experts=given["num_experts"],
                boundaries=boundaries,
                adapters=adapters,
                recipe=recipe,
                name=given["name"],
                device=given["device"],
                keep=given["keep"],
                overwrite=given["overwrite"],
                calibrate=given["calibrate"],
                calibrating=calibrating,
                progress=watch,
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
