"""`ppap checkpoints`: the weights that plugins know of, and what is here of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from ppap_framework.cli.output import print_fields, print_json, print_table, size_words
from ppap_framework.errors import AssetError, PpapError, UsageError

if TYPE_CHECKING:
    from ppap_framework.plugin import Card

__all__ = ["command"]

_UNSOUND = 4
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FLOAT32 = 4  # bytes


@click.group("checkpoints")
def command() -> None:
    """Show, fetch, check and convert the weights that plugins know of.

    NAME is one that `ppap checkpoints list` shows, or DISTRIBUTION:NAME.
    """


@command.command("list")
@click.option("--here", is_flag=True, help="Only those whose files are here.")
@_JSON
def list_checkpoints(here: bool, as_json: bool) -> None:
    """List what can be had, how large it is, and what is here."""
    from ppap_framework.registry import registry

    rows = [_row(card) for card in registry().every_card()]
    rows = [row for row in rows if row["here"] or not here]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["name", "for", "pixels", "size", "licence", "here", "summary"],
        [
            [
                row["name"],
                row["component"],
                str(row["image_size"]),
                _size(row),
                row["licence"],
                "yes" if row["here"] else "",
                row["summary"],
            ]
            for row in rows
        ],
    )


@command.command("info")
@click.argument("name")
@_JSON
def info(name: str, as_json: bool) -> None:
    """Show a card: where the file is from, its hash, licence and architecture."""
    from ppap_framework.checkpoints import location, noted_sha256
    from ppap_framework.registry import registry

    card = registry().card_named(name)
    row = _row(card)
    noted = None if card.sha256 else noted_sha256(location(card))
    if as_json:
        print_json({**row, "noted_sha256": noted, "architecture": dict(card.architecture)})
        return
    print_fields(
        f"checkpoint {card.name}",
        {
            "summary": card.summary,
            "for": f"{card.kind} {card.component}",
            "plugin": row["plugin"],
            "from": card.uri,
            "size": _size(row),
            "SHA-256": card.sha256
            or (f"{noted}, of the file that was used first" if noted else "none is published"),
            "licence": card.licence,
            "pixels": card.image_size,
            "parameters": f"{card.parameters:,}" if card.parameters else None,
            "path": row["path"],
            "here": "yes" if row["here"] else "no",
        },
    )
    print_fields("architecture", _flat(card.architecture))


@command.command("where")
@click.argument("name")
def where(name: str) -> None:
    """Print the path where a checkpoint is, or where one that is fetched by hand belongs."""
    from ppap_framework.checkpoints import location
    from ppap_framework.registry import registry

    click.echo(location(registry().card_named(name)))


@command.command("download")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--offline", is_flag=True, help="Only look whether they are here and sound.")
@_JSON
def download(names: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Fetch checkpoints, and print their paths.

    What was cut off goes on where it was. Exits with 4 where a file cannot be had, naming its
    address and the path where to put it by hand.
    """
    from ppap_framework.checkpoints import fetch
    from ppap_framework.registry import registry

    cards = [registry().card_named(name) for name in names]
    for card in cards:
        path = fetch(card, offline=offline)
        if not as_json:
            click.echo(path)
    if as_json:
        print_json([_row(card) for card in cards])


@command.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_JSON
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Compute hashes again, and read the tensors' descriptions.

    A file is held against the published hash, or against that of the file that was used first.
    Without NAME, all that are here. Exits with 4 where one is not sound.
    """
    from ppap_framework.checkpoints import check, location, open_checkpoint
    from ppap_framework.files import file_sha256
    from ppap_framework.registry import registry

    found = registry()
    cards = [found.card_named(name) for name in names] or [
        card for card in found.every_card() if _is_here(card)
    ]
    results: list[dict[str, Any]] = []
    errors: list[PpapError] = []
    for card in cards:
        result: dict[str, Any] = {"name": card.name, "sound": True, "sha256": None, "fault": None}
        try:
            check(card)
            result |= {"sha256": file_sha256(location(card)), "against": _against(card)}
            result["tensors"] = len(open_checkpoint(card, offline=True).state_dict())
        except AssetError as error:
            errors.append(error)
            result |= {"sound": False, "fault": error.message}
        results.append(result)
    if as_json:
        print_json(results)
        return _UNSOUND if errors else 0
    for result in results:
        if result["sound"]:
            click.echo("{name}: {tensors} tensors, SHA-256 {sha256} {against}".format(**result))
    if errors:
        hints = dict.fromkeys(error.hint for error in errors)
        raise AssetError("; ".join(error.message for error in errors), hint="; ".join(hints))
    return 0


@command.command("convert")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@_JSON
def convert(source: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a checkpoint as safetensors that says what it is, and compare every value.

    SOURCE is a name, the path of a file, NAME=PATH for a file that goes by another name, or several
    of these joined by "+" for the networks of one component.

    \b
    ppap checkpoints convert adm-256-uncond adm-256-uncond.safetensors
    ppap checkpoints convert glide-base+glide-upsample glide.safetensors
    """
    import torch

    from ppap_framework.checkpoints import find_checkpoint, open_checkpoint, save_checkpoint
    from ppap_framework.registry import registry

    if out.suffix != ".safetensors":
        raise UsageError(
            f"{str(out)!r} does not end in .safetensors", hint="that is what is written"
        )
    if out.exists() and not overwrite:
        raise UsageError(f"{str(out)!r} is there already", hint="--overwrite replaces it")
    checkpoint = find_checkpoint(registry(), None, None, source)
    if not checkpoint.architecture:
        raise AssetError(
            f"{checkpoint.name!r} does not state its architecture",
            hint="name what it is, as NAME=PATH with a name of `ppap checkpoints list`",
        )
    state = checkpoint.state_dict()
    notes = {"converted_from": checkpoint.name, "sha256": checkpoint.sha256}
    save_checkpoint(out, state, checkpoint.architecture, notes)
    written = open_checkpoint(out).state_dict()
    for name, tensor in state.items():
        same = written[name].dtype == tensor.dtype and torch.equal(
            written[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)
        )
        if not same:
            raise AssetError(f"{str(out)!r} was not written as it should be: {name!r} differs")
    if as_json:
        print_json({"path": str(out), "tensors": len(state), **notes})
    else:
        click.echo(out)


def _row(card: Card) -> dict[str, Any]:
    from ppap_framework.checkpoints import location
    from ppap_framework.registry import registry

    known = attrs.asdict(card, filter=attrs.filters.exclude("architecture"))
    try:
        path = str(location(card))
    except AssetError:  # of a package that is not whole
        path = None
    here = _is_here(card)
    return {
        **known,
        "plugin": registry().provider(card).distribution,
        "path": path,
        "here": here,
        "bytes_here": _bytes(Path(path)) if here and path else None,
        "approximate_size": _FLOAT32 * card.parameters if card.parameters else None,
    }


def _is_here(card: Card) -> bool:
    from ppap_framework.checkpoints import location

    try:
        return location(card).exists()
    except AssetError:
        return False


def _bytes(path: Path) -> int:
    return path.stat().st_size


def _against(card: Card) -> str:
    from ppap_framework.checkpoints import location, noted_sha256

    if card.sha256:
        return "as published"
    return "as when it was used first" if noted_sha256(location(card)) else "compared with nothing"


def _size(row: dict[str, Any]) -> str:
    """In words; about, where it follows from the number of parameters."""
    if size := row["bytes_here"] or row["size"]:
        return size_words(size)
    about = row["approximate_size"]
    return f"about {size_words(about)}" if about else "unknown"


def _flat(architecture: Any, before: str = "") -> dict[str, Any]:
    """Nested objects as one level of dotted names."""
    fields: dict[str, Any] = {}
    for name, value in architecture.items():
        if isinstance(value, dict):
            fields |= _flat(value, f"{before}{name}.")
        else:
            fields[f"{before}{name}"] = value
    return fields
