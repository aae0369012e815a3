"""`ppap experts push`, `ppap experts pull`, `ppap data push` and `ppap data merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ppap_framework.cli import output
from ppap_framework.cli.config import option, problems_of

__all__ = ["merge_data", "pull_experts", "push_data", "push_experts"]

_overwrite = option("--overwrite", is_flag=True, help="Replace what is there under that name.")
_private = option(
    "--private", is_flag=True, help="Create a repository of the Hub as a private one."
)


@click.command("push")
@click.argument("bundle")
@click.argument("to", metavar="REPO|URL")
@option("--picture", metavar="FILE", help="A picture for the card, such as the grid of a run.")
@option("--licence", metavar="ID", help="Licence for the card, such as apache-2.0.")
@_private
@_overwrite
@output.json_option
@click.pass_context
def push_experts(ctx: click.Context, /, bundle: str, to: str, as_json: bool, **given: Any) -> None:
    """Share a bundle of experts, with a card that its description makes.

    BUNDLE is a path, or a name that `ppap experts list` shows. REPO is a repository of the Hugging
    Face Hub, OWNER/NAME; URL is a folder of any file system that fsspec knows, such as s3://.

    \b
    ppap experts push adm-classifier-5 OWNER/NAME --picture runs/demo/grid.png
    """
    from ppap_framework.experts import bundle_by_name
    from ppap_plugin_hub import experts

    problems_of(ctx).check()
    picture = given.pop("picture")
    found = bundle_by_name(bundle)
    address, written = experts.push(found, to, picture=picture and Path(picture), **given)
    if as_json:
        output.print_json({"name": found.name, "address": address, "written": written})
        return
    if not written:
        output.note(f"{to} has these experts already")
    click.echo(address)


@click.command("pull")
@click.argument("source", metavar="REPO|URL")
@option("--out", metavar="FILE", help="Where to write it; by default where `ppap run` finds it.")
@option("--offline", is_flag=True, help="Download nothing.")
@_overwrite
@output.json_option
@click.pass_context
def pull_experts(ctx: click.Context, /, source: str, as_json: bool, **given: Any) -> None:
    """Fetch a bundle of experts that somebody shared.

    REPO is a repository of the Hugging Face Hub, OWNER/NAME[@REVISION]; URL is a bundle or a folder
    that holds one. The file gets its name if its hash is that of the listing and its own.

    \b
    ppap experts pull OWNER/NAME
    ppap experts pull s3://bucket/folder/NAME.experts.safetensors --out NAME.experts.safetensors
    """
    from ppap_framework.checkpoints import without_downloads
    from ppap_plugin_hub import experts

    problems_of(ctx).check()
    with without_downloads(given["offline"]):
        out = given["out"] and Path(given["out"])
        bundle = experts.pull(source, out, overwrite=given["overwrite"])
    if as_json:
        found = {"name": bundle.name, "path": str(bundle.path), "sha256": bundle.sha256}
        output.print_json(found)
        return
    click.echo(bundle.path)


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("to", metavar="REPO|URL")
@_private
@_overwrite
@output.json_option
@click.pass_context
def push_data(ctx: click.Context, /, folder: Path, to: str, as_json: bool, **given: Any) -> None:
    """Share a set that `ppap synthesize` drew.

    REPO is a repository of data of the Hugging Face Hub, OWNER/NAME; URL is a folder of any file
    system that fsspec knows. `--data URL` reads it; for a repository, it is hf://datasets/REPO.

    \b
    ppap data push runs/synthetic s3://bucket/synthetic
    """
    from ppap_plugin_hub import sets

    problems_of(ctx).check()
    address, written = sets.push(folder, to, **given)
    if as_json:
        output.print_json({"address": address, "shards_written": written})
        return
    if not written:
        output.note(f"{to} has these shards already")
    click.echo(address)


@click.command("merge")
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True)
@option("--out", required=True, metavar="FOLDER", help="A new folder.")
@output.json_option
@click.pass_context
def merge_data(ctx: click.Context, /, folders: tuple[str, ...], out: str, as_json: bool) -> None:
    """Join sets that were drawn with different seeds, on different machines, say.

    Images keep their bytes and are numbered anew, in the order of the folders, which may be URLs.

    \b
    ppap data merge runs/seed-0 runs/seed-1 --out runs/synthetic
    """
    from ppap_plugin_hub import sets

    problems_of(ctx).check()
    made = sets.merge(folders, Path(out))
    if as_json:
        output.print_json({"folder": str(made.path), **made.manifest})
    else:
        click.echo(made.path)
