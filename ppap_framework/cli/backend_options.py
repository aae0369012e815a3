"""Which diffusion model, on the command line of whatever takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.config import option

if TYPE_CHECKING:
    from ppap_framework.run import FoundBackend

__all__ = ["backend_of", "backend_options"]


def backend_options(command: Any) -> Any:
    """Add the options that name a diffusion model."""
    for add in (
        option(
            "--backend-option",
            multiple=True,
            metavar="KEY=VALUE",
            help="The diffusion model's own options; `ppap plugins info NAME` lists them.",
        ),
        option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Cast its weights while they are loaded, but for those that need float32.",
        ),
        option("--checkpoint", metavar="NAME|PATH", help="Its weights."),
        option("--backend", required=True, metavar="NAME", help="The diffusion model."),
    ):
        command = add(command)
    return command


def backend_of(given: dict[str, Any], *more: str, offline: bool = False) -> FoundBackend:
    """The diffusion model that was asked for, to be loaded.

    Args:
        given: What was typed.
        more: Further options of it, KEY=VALUE each.
        offline: Whether to raise instead of downloading.

    Raises:
        PpapError: As `ppap_framework.run.find_backend`, and for options that cannot be read.
    """
    import attrs

    from ppap_framework.cli.guide_options import typed_pairs
    from ppap_framework.run import find_backend

    found = find_backend(
        given["backend"],
        checkpoint=given["checkpoint"],
        dtype=given["dtype"],
        offline=offline,
    )
    texts = [*given["backend_option"], *more]
    options = typed_pairs("--backend-option", texts, found.spec.name, "backend")
    return attrs.evolve(found, options=options)
