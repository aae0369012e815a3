from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ppap_framework.learn import Recipe


@click.command("adapt", cls=Command)
@backend_options
@guide_options
@option("--num", type=int, default=2048, help="Number of images that the diffusion model draws.")
@option("--steps", type=int, default=25, help="Steps from noise to image.")
@option("--workers", type=int, help="Processes that draw; by default one for each core, up to 8.")
@option(
    "--out",
    metavar="FOLDER",
    help="Folder to write to, or to continue in; by default runs/adapt/BACKEND-GUIDER-N.",
)
@training_options
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Make a network read a diffusion model's noise: synthesize, then transfer.

    No data and no labels are needed. `ppap run` then finds the experts by itself. However it ends,
    the same command continues.

    \b
    ppap adapt --backend adm --guider classifier
    ppap run --backend adm --guider classifier --target "red cube"
    """
    from ppap_framework.cli.guide_options import guide_of
    from ppap_framework.learn import adapt, check_adapt, load_teacher
    from ppap_framework.run import Compute, Sampling

    problems = problems_of(ctx)
    problems.check()
    recipe = recipe_of(given, problems)
    sampling = Sampling(steps=given["steps"], seed=given["seed"])
    compute = Compute(device=given["device"], batch=64)
    out = Path(given["out"] or _default_out(given, recipe)).expanduser()
    draws = {name: given[name] for name in ("num", "workers", "name")}
    with problems.collected():
        check_adapt(out, recipe, sampling, compute, **draws)
    with problems.collected():
        found = backend_of(given)
    with problems.collected():
        request = guide_of(given)
    problems.check()
    with progress(f"the same command goes on in {out}") as watch:
        bundle = adapt(
            found.load(),
            load_teacher(request),
            out=out,
            sampling=sampling,
            recipe=recipe,
            compute=compute,
            **draws,
            **{name: given[name] for name in ("keep", "overwrite", "calibrate")},
            progress=watch,
            command=["ppap", *sys.argv[1:]],
        )
    show_bundle(bundle, given["json"])


def _default_out(given: dict[str, Any], recipe: Recipe) -> str:
    parts = [Path(given[name].rpartition(":")[2]).name for name in ("backend", "guider")]
    if recipe.boundaries == "auto":
        parts += [str(n) for n in [recipe.num_experts] if n] + ["auto"]
    else:
        follows = 5 if recipe.boundaries is None else len(recipe.boundaries) + 1
        parts.append(str(recipe.num_experts or follows))
    return f"runs/adapt/{'-'.join(parts)}"
