from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import Command, option, problems_of
from ppap_framework.cli.progress import progress
from ppap_framework.cli.training_options import (
    guide_options,
    recipe_of,
    show_bundle,
    training_options,
)


@click.command("transfer", cls=Command)
@backend_options
@guide_options
@option("--data", required=True, metavar="FOLDER", help="What `ppap synthesize` drew.")
@option("--out", required=True, metavar="FOLDER", help="Folder to write to, or to continue in.")
@option(
    "--supervised",
    is_flag=True,
    help="--data is an NPZ file with images and labels, and experts learn the labels.",
)
@training_options
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Train experts: a network learns to answer to noisy images as it does to clean ones.

    Writes NAME.experts.safetensors, a log, and a plot of the losses. However it ends, the same
    command continues.

    \b
    ppap transfer --backend adm --guider classifier --data runs/synthetic --out runs/experts
    """
    from ppap_framework.cli.guide_options import guide_of
    from ppap_framework.data import LabelledImages, SyntheticData
    from ppap_framework.learn import check_transfer, load_teacher, transfer
    from ppap_framework.run import Compute

    problems = problems_of(ctx)
    problems.check()
    out, compute = Path(given["out"]).expanduser(), Compute(device=given["device"], batch=64)
    recipe = recipe_of(given, problems)
    with problems.collected():
        check_transfer(out, recipe, compute, given["name"])
    with problems.collected():
        found = backend_of(given)
    with problems.collected():
        data = (LabelledImages if given["supervised"] else SyntheticData)(given["data"])
    with problems.collected():
        request = guide_of(given)
    problems.check()
    with progress(f"the same command goes on in {out}") as watch:
        bundle = transfer(
            found.load(),
            load_teacher(request),
            data,
            out=out,
            recipe=recipe,
            compute=compute,
            **{name: given[name] for name in ("name", "keep", "overwrite", "calibrate")},
            progress=watch,
            command=["ppap", *sys.argv[1:]],
        )
    show_bundle(bundle, given["json"])
