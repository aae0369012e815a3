"""`ppap experts import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.config import option, problems_of
from ppap_framework.cli.output import print_json, print_table
from ppap_framework.errors import UsageError

__all__ = ["command"]


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@option("--architecture", required=True, metavar="NAME", help="The network: resnet50 or deit-s.")
@option(
    "--method",
    type=click.Choice(["finetune", "multi-experts", "ppap"]),
    help="The method that made the files, if their names do not state it, or state it wrongly.",
)
@option("--guider-model", help="The network that they were made of, if not the usual one.")
@option("--guider-checkpoint", help="Its weights, by name or path; downloaded if not given.")
@option("--offline", is_flag=True, help="Download nothing.")
@option(
    "--out",
    metavar="FILE",
    help="The bundle; by default ARCHITECTURE-N.experts.safetensors in this folder.",
)
@option("--overwrite", is_flag=True, help="Replace a bundle of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, /, files: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Make a bundle of the experts that the authors of PPAP released.

    FILE is what the published code saves, one for each expert: 0_max5.ckpt to 4_max5.ckpt, of
    low-rank experts (ppap) or of whole networks (multi_experts), or a single fine-tuned network.

    \b
    ppap experts import ppap_5/*.ckpt --architecture resnet50
    ppap run --backend adm --checkpoint adm-256-uncond \\
        --guider classifier --guider-model resnet50.tv2_in1k \\
        --experts resnet50-5.experts.safetensors --target goldfish
    """
    from ppap_framework.checkpoints import open_checkpoint, without_downloads
    from ppap_framework.experts import SUFFIX, Identity, guide_sha256
    from ppap_framework.learn import teacher
    from ppap_plugin_released.architectures import find_architecture
    from ppap_plugin_released.files import in_order
    from ppap_plugin_released.importer import import_experts

    for problem in problems_of(ctx):
        raise problem
    architecture = find_architecture(given["architecture"])
    out = Path(given["out"] or f"{architecture.name}-{len(files)}{SUFFIX}").expanduser()
    if out.exists() and not given["overwrite"]:
        raise UsageError(
            f"{str(out)!r} is there already",
            hint="--overwrite replaces it, or give another file with --out",
        )
    paths = in_order([Path(file).expanduser() for file in files])
    for path in paths:  # before the network, which may have to be downloaded
        open_checkpoint(path)
    with without_downloads(given["offline"]):
        learner = teacher(
            architecture.guider,
            model=given["guider_model"] or architecture.model,
            checkpoint=given["guider_checkpoint"],
        )
    info = import_experts(
        paths,
        learner.model,
        architecture,
        out,
        guide=Identity(
            component=learner.origin.component,
            checkpoint=learner.origin.checkpoint or learner.origin.options["model"],
            sha256=guide_sha256(learner.model),
        ),
        method=given["method"],
    )
    names = [file.partition(" ")[0] for file in info.recipe["files"]]
    if as_json:
        print_json(
            {
                "name": out.name.removesuffix(SUFFIX),
                "path": str(out),
                "method": info.recipe["method"],
                "experts": len(info),
                "timesteps": list(info.timesteps),
                "files": names,
            }
        )
        return
    print_table(
        ("EXPERT", "TIMESTEPS", "FILE"),
        [
            (str(i), f"{info.timesteps[i]} to {info.timesteps[i + 1] - 1}", name)
            for i, name in enumerate(names)
        ],
    )
    click.echo(out)
