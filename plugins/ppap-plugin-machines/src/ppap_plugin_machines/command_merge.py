"""`ppap experts merge`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from ppap_framework.cli.output import json_option, print_json
from ppap_framework.errors import UsageError

__all__ = ["command", "destination", "tell", "written_to"]


def written_to(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a command that writes a bundle."""
    kept = "The bundle; by default it is kept for `ppap run`."
    again = click.option("--overwrite", is_flag=True, help="Replace a bundle of that name.")
    return click.option("--out", metavar="FILE", help=kept)(again(command))


def destination(out: str | None, name: str, overwrite: bool) -> Path:
    """The file `out`, or that of a name among the bundles that are kept; UsageError if it cannot be
    called so, or is there already.
    """
    from ppap_framework.experts import SUFFIX, experts_dir
    from ppap_framework.files import expanded

    to = expanded(out) if out else experts_dir() / name
    if not to.name.endswith(SUFFIX):
        raise UsageError(f"a bundle cannot be called {to.name!r}", hint=f"use NAME{SUFFIX}")
    if to.exists() and not overwrite:
        hint = "--overwrite replaces it, or give another file with --out"
        raise UsageError(f"{str(to)!r} is there already", hint=hint)
    return to


def tell(to: Path, as_json: bool, **counts: int) -> None:
    """Print what was written."""
    from ppap_framework.experts import SUFFIX

    if as_json:
        print_json({"name": to.name.removesuffix(SUFFIX), "path": str(to), **counts})
    else:
        click.echo(to)


@click.command("merge")
@click.argument(
    "parts", metavar="PART...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@written_to
@json_option
def command(parts: tuple[Path, ...], out: str | None, overwrite: bool, as_json: bool) -> None:
    """Join the parts of experts that machines trained with --experts-of.

    PART is the folder of a training, or its bundle. The result has the tensors that one machine
    would have trained. It is not calibrated: see `ppap experts calibrate`.

    \b
    ppap transfer ... --experts-of 1/2 --out first    # on one machine
    ppap transfer ... --experts-of 2/2 --out second   # on another one
    ppap experts merge first second
    """
    from ppap_plugin_machines.merging import found, merge

    paths = [found(path.expanduser()) for path in parts]
    to = destination(out, paths[0].name, overwrite)
    info = merge(paths, to)
    tell(to, as_json, experts=len(info), parts=len(paths))
