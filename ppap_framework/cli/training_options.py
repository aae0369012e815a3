"""Options and output that `ppap transfer` and `ppap adapt` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.config import option
from ppap_framework.cli.output import print_json, print_table
from ppap_framework.errors import Problems, UsageError

if TYPE_CHECKING:
    from ppap_framework.experts import BundleFile
    from ppap_framework.learn import Adapters, Boundaries, Recipe

_PAIR: dict[str, Any] = {"multiple": True, "metavar": "KEY=VALUE"}

_GUIDE = (
    option("--guider", required=True, metavar="NAME", help="The network that learns."),
    option("--guider-model", help="The guide's network, if the guider knows several."),
    option("--guider-checkpoint", help="Its weights, by name or path."),
    option("--guider-option", help="Option of the guider; see `ppap plugins info NAME`.", **_PAIR),
    option("--loss", help="Loss that compares student and teacher, if not the guider's own."),
    option("--loss-option", help="Option of the loss, such as temperature=0.5.", **_PAIR),
)

_EXPERTS = (
    option("--num-experts", type=int, help="Number of experts; by default 5."),
    option(
        "--boundaries",
        metavar="auto|T,T,...",
        help="Timesteps at which all experts but the first begin; by default ranges of equal "
        "width. auto derives them, and the number of experts, from how the network's answers "
        "change with noise.",
    ),
    option(
        "--adapter",
        multiple=True,
        metavar="NAME[:KEY=VALUE,...]",
        help="What an expert is made of; may be repeated. By default the defaults of the "
        "installed adapters, such as lora:rank=16,alpha=8 and bias.",
    ),
    option("--iterations", type=int, default=5000, help="Iterations of all experts together."),
    option("--shared", type=float, default=0.5, help="Share of them in a start of all experts."),
    option("--chain", is_flag=True, help="Each expert begins as the one before it instead."),
    option("--learn-batch", type=int, default=64, help="Images in an iteration."),
    option(
        "--learning-rate",
        type=float,
        default=5e-3,
        help="Peak learning rate of AdamW; for whole networks 0.001 is better.",
    ),
    option("--held-out", type=float, default=0.1, help="Share of images kept for validation."),
    option("--validate-every", type=int, default=100, help="Iterations between validations."),
    option(
        "--patience",
        type=int,
        default=0,
        help="Validations without a new best that end an expert's training; 0 for never.",
    ),
    option(
        "--precision",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        help="Precision of matrix products and convolutions in training.",
    ),
    option("--seed", type=int, default=0, help="Seed of images and training."),
    option("--name", help="The bundle is called NAME.experts.safetensors."),
    option(
        "--keep/--no-keep",
        is_flag=True,
        default=True,
        help="Whether `ppap run` finds the experts by itself.",
    ),
    option(
        "--calibrate/--no-calibrate",
        is_flag=True,
        default=True,
        help="Whether to find the guidance scale at each noise level, in seconds.",
    ),
    option("--device", default="auto", help="Device, such as cpu or cuda."),
    option("--overwrite", is_flag=True, help="Begin anew, whatever is in the folder."),
    option("--json", is_flag=True, help="Print the result as JSON."),
)


def guide_options(command: Any) -> Any:
    for add in reversed(_GUIDE):
        command = add(command)
    return command


def training_options(command: Any) -> Any:
    for add in reversed(_EXPERTS):
        command = add(command)
    return command


def recipe_of(given: Mapping[str, Any], problems: Problems) -> Recipe:
    """The recipe of a command line, not checked; what cannot be read is collected."""
    import attrs

    from ppap_framework.learn import Recipe

    values = {name: given[name] for name in attrs.fields_dict(Recipe) if name in given}
    values |= {"batch": given["learn_batch"], "adapters": None, "boundaries": None}
    with problems.collected():
        values["adapters"] = _adapters(given["adapter"])
    with problems.collected():
        values["boundaries"] = _boundaries(given["boundaries"])
    return Recipe(**values)


def _adapters(texts: Sequence[str]) -> Adapters:
    """Adapters as typed, NAME or NAME:KEY=VALUE,KEY=VALUE; None for none."""
    from ppap_framework.cli.guide_options import typed_pairs
    from ppap_framework.registry import registry

    found: list[tuple[str, dict[str, Any]]] = []
    for text in texts:
        name, options = _adapter(text)
        registry().spec("adapter", name)
        kind = name.rpartition(":")[2]
        if kind in [other for other, _ in found]:
            raise UsageError(f"--adapter {kind} is given twice", hint="give each adapter once")
        pairs = [pair for pair in options.split(",") if pair]
        found.append((kind, typed_pairs("--adapter", pairs, name, "adapter")))
    return found or None


def _adapter(text: str) -> tuple[str, str]:
    """A name, perhaps "distribution:name", and options."""
    name, _, options = text.strip().partition(":")
    own, _, rest = options.partition(":")
    return (f"{name}:{own}", rest) if own and "=" not in own else (name, options)


def _boundaries(text: str | None) -> Boundaries:
    if text is None or text.strip() == "auto":
        return None if text is None else "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--boundaries {text!r} cannot be read",
            hint="type the timesteps at which experts begin, such as 200,400,600,800, or auto",
        ) from error


def show_bundle(bundle: BundleFile, as_json: bool) -> None:
    """Print trained experts as JSON, or as a table and their file's path."""
    info = bundle.info
    shares = [n / info.network_parameters for n in info.expert_parameters]
    if as_json:
        print_json(
            {
                "name": bundle.name,
                "path": str(bundle.path),
                "experts": len(info),
                "timesteps": list(info.timesteps),
                "parameters_per_expert": list(info.expert_parameters),
                "share_of_network": shares,
                "metrics": dict(info.metrics),
            }
        )
        return
    print_table(
        ("EXPERT", "TIMESTEPS", "HELD-OUT LOSS", "UNTOUCHED", "PARAMETERS"),
        [
            (
                i,
                f"{info.timesteps[i]} to {info.timesteps[i + 1] - 1}",
                *map(_loss, (score["held_out"], score["untouched"])),
                f"{shares[i]:.2%}",
            )
            for i, score in enumerate(info.metrics["experts"])
        ],
    )
    click.echo(bundle.path)


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
