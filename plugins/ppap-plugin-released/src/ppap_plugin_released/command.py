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
@option(
    "--architecture",
    required=True,
    metavar="NAME",
    help="The network: resnet50, deit-s or midas-small.",
)
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
    from ppap_framework.checkpoints import open_checkpoint
    from ppap_framework.experts import SUFFIX, Identity, guide_sha256
    from ppap_framework.run import GuideRequest
    from ppap_plugin_released.architectures import find_architecture
    from ppap_plugin_released.files import in_order
    from ppap_plugin_released.importer import import_experts

    problems_of(ctx).check()
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
    network = given["guider_model"] or architecture.model
    guide = GuideRequest(
        source=architecture.guider,
        model=network,
        checkpoint=given["guider_checkpoint"],
        experts="none",
        offline=given["offline"],
    ).load(aim=False)
    identity = Identity(
        component=architecture.guider,
        checkpoint=(guide.origin and guide.origin.checkpoint) or network,
        sha256=guide_sha256(guide.model),
    )
    method = given["method"]
    info = import_experts(paths, guide.model, architecture, out, guide=identity, method=method)
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
    ranges = zip(info.timesteps, info.timesteps[1:], names, strict=False)
    rows = [(str(i), f"{t} to {end - 1}", name) for i, (t, end, name) in enumerate(ranges)]
    print_table(("EXPERT", "TIMESTEPS", "FILE"), rows)
    click.echo(out)
