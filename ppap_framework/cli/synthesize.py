from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.backend_options import backend_of, backend_options, settings_of
from ppap_framework.cli.config import Command, option, problems_of
from ppap_framework.cli.output import json_option, print_json
from ppap_framework.cli.progress import progress
from ppap_framework.errors import AssetError, UsageError


@click.command("synthesize", cls=Command)
@backend_options
@option("--out", required=True, metavar="FOLDER", help="Where to write, or to continue.")
@option("--num", type=int, default=2048, help="Number of images.")
@option(
    "--prompts",
    metavar="FILE",
    help="Prompts, a line for each image, from the first again after the last; without it the "
    "model gets none.",
)
@option("--steps", type=int, default=25, help="Steps from noise to image.")
@option("--sampler", type=click.Choice(["ddim", "ddpm"]), default="ddim", help="The sampler.")
@option("--eta", type=float, default=0.0, help="Stochasticity of DDIM, from 0 to 1.")
@option("--seed", type=int, default=0, help="Image i is a function of (seed, i).")
@option("--batch", "--block", type=int, default=64, help="Images that are drawn at once.")
@option("--shard", type=int, default=512, help="Images in a file, a multiple of --batch.")
@option("--device", default="auto", help="Such as cpu or cuda.")
@option("--threads", type=int, default=1, help="Threads of each worker, on the CPU.")
@option("--workers", type=int, help="Processes; by default as many as there are cores, up to 8.")
@option("--overwrite", is_flag=True, help="Remove an earlier set in the folder.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Draw the images that experts are trained on, without guides.

    Writes shards in webdataset's format, and manifest.json with hashes; prints the folder. Whatever
    ends it, the same command continues, and the bytes are the same with any number of workers.

    \b
    ppap synthesize --backend adm --num 2048 --out runs/synthetic
    """
    from ppap_framework.data import check_synthesis, synthesize

    # Options that could not be read are None and already reported; use defaults here.
    num = 1 if given["num"] is None else given["num"]
    shard, workers = 512 if given["shard"] is None else given["shard"], given["workers"]
    out, prompts = Path(given["out"] or ".").expanduser(), None
    problems = problems_of(ctx)
    with problems.collected():
        prompts = _prompts(given["prompts"], num)
    sampling, compute = settings_of(given, prompt=prompts)
    with problems.collected():
        check_synthesis(out, num, sampling, compute, shard=shard, workers=workers)
    with problems.collected():
        backend = None if given["backend"] is None else backend_of(given)
    problems.check()
    assert backend is not None
    with progress(f"the same command continues in {given['out']}") as watch:
        data = synthesize(
            backend.load(),
            out=out,
            num=num,
            sampling=sampling,
            compute=compute,
            shard=shard,
            workers=workers,
            overwrite=given["overwrite"],
            progress=watch,
            command=["ppap", *sys.argv[1:]],
        )
    if given["as_json"]:
        print_json({"folder": str(data.path), **data.manifest})
    else:
        click.echo(str(data.path))


def _prompts(path: str | None, num: int) -> list[str] | None:
    """A prompt for each image: the non-blank lines of a file, in turn."""
    if path is None:
        return None
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise AssetError(
            f"cannot read the prompts in {path!r}: {reason}", hint="a text file, a prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"there are no prompts in {path!r}", hint="write one a line")
    return [prompts[image % len(prompts)] for image in range(num)]
