"""`ppap experts join`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.config import Command, backend_options, problems_of
from ppap_framework.cli.output import json_option
from ppap_plugin_machines.command_merge import destination, tell, written_to

__all__ = ["command"]


@click.command("join", cls=Command)
@click.argument("clean")
@click.argument("noisy")
@click.option("--at", metavar="T", type=int, required=True, help="The first timestep of NOISY's.")
@backend_options
@written_to
@json_option
@click.pass_context
def command(
    ctx: click.Context, /, clean: str, noisy: str, at: int, as_json: bool, **given: Any
) -> None:
    """Join the experts of two bundles at a noise level.

    CLEAN and NOISY are bundles, by name or path, or folders of trainings; of one network, diffusion
    model and kind of adapters. The result has the experts of CLEAN below timestep T, and those of
    NOISY from there on. It is not calibrated: see `ppap experts calibrate`.

    \b
    ppap transfer ... --through detached --out predicted
    ppap transfer ... --num-experts 1 --out noisy
    ppap experts join predicted noisy --at 720 --backend adm
    """
    from ppap_framework.cli.guide_options import backend_of
    from ppap_framework.experts import SUFFIX
    from ppap_plugin_machines.joining import join

    problems = problems_of(ctx)
    problems.check()
    low, high = map(_bundle, (clean, noisy))
    name = f"{low.name.removesuffix(SUFFIX)}-joined{SUFFIX}"
    to = destination(given["out"], name, given["overwrite"])
    info = join(backend_of(given).load(), low, high, at, to)
    tell(to, as_json, experts=len(info))


def _bundle(source: str) -> Path:
    """The file of a bundle, by name, path or the folder of its training."""
    from ppap_framework.experts import bundle_by_name
    from ppap_plugin_machines.merging import found

    path = Path(source).expanduser()
    return found(path) if path.exists() else bundle_by_name(source).path
