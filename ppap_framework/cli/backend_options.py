"""The options of the diffusion model and of a run, for every command that takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.config import option

if TYPE_CHECKING:
    from ppap_framework.run import Compute, FoundBackend, Sampling


def backend_options(command: Any) -> Any:
    for add in (
        option(
            "--backend-option",
            multiple=True,
            metavar="KEY=VALUE",
            help="Option of the diffusion model; `ppap plugins info NAME` lists them.",
        ),
        option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Type to which its weights are cast while loading, if they need not be float32.",
        ),
        option("--checkpoint", metavar="NAME|PATH", help="Its weights."),
        option("--backend", required=True, metavar="NAME", help="The diffusion model."),
    ):
        command = add(command)
    return command


def backend_of(given: Mapping[str, Any], *more: str, offline: bool = False) -> FoundBackend:
    """The diffusion model of a command line, not yet loaded.

    Args:
        given: Values of options by parameter name.
        more: Further options of the diffusion model, KEY=VALUE each.
        offline: Raise instead of downloading.

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


def settings_of(given: Mapping[str, Any], **others: Any) -> tuple[Sampling, Compute]:
    """What determines the images, and how they are computed; not checked.

    Args:
        given: Values of options by parameter name; None and names that are no field are ignored.
        others: Fields of the records whose option has another name or none.
    """
    import attrs

    from ppap_framework.run import Compute, Sampling, settle

    fields = {*attrs.fields_dict(Sampling), *attrs.fields_dict(Compute)}
    changes = {k: v for k, v in given.items() if k in fields and v is not None}
    return settle(None, None, changes | others)
