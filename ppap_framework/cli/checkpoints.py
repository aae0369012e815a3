from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import attrs
import click

from ppap_framework.cli import output
from ppap_framework.cli.groups import Group
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.files import file_sha256
from ppap_framework.plugin import Card
from ppap_framework.registry import registry


@click.group("checkpoints", cls=Group)
def command() -> None:
    """Show, download, check and convert the weights that plugins know.

    NAME is one that `ppap checkpoints list` shows, or DISTRIBUTION:NAME.
    """


@command.command("list")
@click.option("--here", is_flag=True, help="Only those whose files are here.")
@output.json_option
def list_checkpoints(here: bool, as_json: bool) -> None:
    """List what can be downloaded, its size, and what is here."""
    rows = [row for card in registry().every_card() if (row := _row(card))["here"] or not here]
    if as_json:
        output.print_json(rows)
        return
    for row in rows:
        row |= {"size": _size(row), "here": "yes" if row["here"] else None}
        row |= {"for": row["component"], "pixels": row["image_size"]}
    output.print_table(["name", "for", "pixels", "size", "licence", "here", "summary"], rows)


@command.command("info")
@click.argument("name")
@output.json_option
def info(name: str, as_json: bool) -> None:
    """Show a card: the source of the file, its hash, licence and architecture."""
    from ppap_framework.checkpoints import location, noted_sha256

    card = registry().card_named(name)
    row, noted = _row(card), None if card.sha256 else noted_sha256(location(card))
    if as_json:
        output.print_json({**row, "noted_sha256": noted, "architecture": dict(card.architecture)})
        return
    first_used = f"{noted}, of the file that was used first" if noted else "none is published"
    row |= {"size": _size(row), "sha256": card.sha256 or first_used}
    row |= {"parameters": card.parameters and f"{card.parameters:,}"}
    output.print_fields(f"checkpoint {card.name}", row | {"architecture": card.architecture})


@command.command("where")
@click.argument("name")
def where(name: str) -> None:
    """Print the path of a checkpoint, or the path for a file that is fetched by hand."""
    from ppap_framework.checkpoints import location

    click.echo(location(registry().card_named(name)))


@command.command("download")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--offline", is_flag=True, help="Only check that they are here and undamaged.")
@output.json_option
def download(names: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Download checkpoints, and print their paths.

    An interrupted download is continued. Exits with 4 if a file cannot be downloaded, naming its
    address and the path where to put it by hand.
    """
    from ppap_framework.checkpoints import fetch

    cards = [registry().card_named(name) for name in names]
    for card in cards:
        path = fetch(card, offline=offline)
        if not as_json:
            click.echo(path)
    if as_json:
        output.print_json([_row(card) for card in cards])


@command.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@output.json_option
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Compute hashes again, and read the tensors' descriptions.

    A file is compared with the published hash, or with the hash of the file that was used first.
    Without NAME, all that are here are checked. Exits with 4 if one is damaged.
    """
    from ppap_framework.checkpoints import check, location, noted_sha256, open_checkpoint

    def facts(card: Card) -> dict[str, Any]:
        check(card)
        path = location(card)
        against = "as when it was used first" if noted_sha256(path) else "compared with nothing"
        return {
            "sha256": file_sha256(path),
            "against": "as published" if card.sha256 else against,
            "tensors": len(open_checkpoint(card, offline=True).state_dict()),
        }

    cards = [registry().card_named(name) for name in names]
    cards = cards or [card for card in registry().every_card() if _row(card)["here"]]
    blank = dict.fromkeys(("name", "sound", "sha256", "against"))
    line = "{name}: {tensors} tensors, SHA-256 {sha256} {against}"
    return output.print_verified([(card.name, card) for card in cards], facts, blank, line, as_json)


@command.command("convert")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@output.json_option
def convert(source: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a checkpoint as safetensors with its architecture, and compare every value.

    SOURCE is a name, the path of a file, NAME=PATH for a file that goes by another name, or several
    of these joined by "+" for the networks of one component.

    \b
    ppap checkpoints convert adm-256-uncond adm-256-uncond.safetensors
    ppap checkpoints convert glide-base+glide-upsample glide.safetensors
    """
    import torch

    from ppap_framework.checkpoints import find_checkpoint, open_checkpoint, save_checkpoint

    if out.suffix != ".safetensors":
        raise UsageError(f"{str(out)!r} does not end in .safetensors", hint="give OUT that suffix")
    if out.exists() and not overwrite:
        raise UsageError(f"{str(out)!r} is there already", hint="--overwrite replaces it")
    checkpoint = find_checkpoint(registry(), None, None, source)
    if not checkpoint.architecture:
        hint = "name what it is, as NAME=PATH with a name of `ppap checkpoints list`"
        raise AssetError(f"{checkpoint.name!r} does not state its architecture", hint=hint)
    state = checkpoint.state_dict()
    notes = {"converted_from": checkpoint.name, "sha256": checkpoint.sha256}
    save_checkpoint(out, state, checkpoint.architecture, notes)
    written = open_checkpoint(out).state_dict()
    for name, tensor in state.items():
        both = [t.contiguous().view(torch.uint8) for t in (written[name], tensor)]
        if written[name].dtype != tensor.dtype or not torch.equal(*both):
            raise AssetError(f"{str(out)!r} was not written correctly: {name!r} differs")
    if as_json:
        output.print_json({"path": str(out), "tensors": len(state), **notes})
    else:
        click.echo(out)


def _row(card: Card) -> dict[str, Any]:
    from ppap_framework.checkpoints import location

    path = None
    with contextlib.suppress(AssetError):  # a package that is incomplete
        path = location(card)
    size = path.stat().st_size if path and path.exists() else None
    return {
        **attrs.asdict(card, filter=attrs.filters.exclude("architecture")),
        "plugin": registry().provider(card).distribution,
        "path": path and str(path),
        "here": size is not None,
        "bytes_here": size,
        "approximate_size": card.parameters and 4 * card.parameters,
    }


def _size(row: dict[str, Any]) -> str:
    if size := row["bytes_here"] or row["size"]:
        return output.size_words(size)
    about = row["approximate_size"]
    return f"about {output.size_words(about)}" if about else "unknown"
