"""What `ppap transfer` and `ppap adapt` have in common: the guide, the experts, the recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli import State
from ppap_framework.cli.config import option
from ppap_framework.cli.guide_options import typed_pairs
from ppap_framework.errors import UsageError

if TYPE_CHECKING:
    from ppap_framework.experts import BundleFile
    from ppap_framework.learn import Adapters, Boundaries, Recipe, Teacher

__all__ = [
    "adapters_of",
    "boundaries_of",
    "bundle_record",
    "guide_options",
    "option",
    "progress_bars",
    "recipe_of",
    "show_bundle",
    "teacher_of",
    "training_options",
]

Watch = Callable[[Any], None]


def guide_options(command: Any) -> Any:
    """Which network learns."""
    for add in reversed(
        (
            option("--guider", required=True, metavar="NAME", help="The network that shall learn."),
            option("--guider-model", help="Which network, where the guider knows several."),
            option("--guider-checkpoint", help="Its weights, by name or path."),
            option(
                "--guider-option",
                multiple=True,
                metavar="KEY=VALUE",
                help="The guider's own options; `ppap plugins info NAME` lists them.",
            ),
            option("--loss", help="What compares student and teacher, if not the guider's loss."),
            option(
                "--loss-option",
                multiple=True,
                metavar="KEY=VALUE",
                help="The loss's own options, such as temperature=0.5.",
            ),
        )
    ):
        command = add(command)
    return command


def training_options(command: Any, *, calibrate: bool) -> Any:
    """What experts are and how they learn.

    Args:
        command: To which the options are added.
        calibrate: Whether its experts are calibrated unless it is said otherwise.
    """
    for add in reversed(
        (
            option(
                "--num-experts",
                type=int,
                help="How many ranges of noise; 5 if left out, or as many as --boundaries make.",
            ),
            option(
                "--boundaries",
                metavar="auto|T,T,...",
                help="The timesteps at which all but the first begin, if not of equal width; auto "
                "has them proposed by how fast the network loses its understanding, and "
                "--num-experts, too.",
            ),
            option(
                "--adapter",
                multiple=True,
                metavar="NAME[:KEY=VALUE,...]",
                help="What an expert is made of; repeat it. Left out: lora:rank=16,alpha=8 and "
                "bias.",
            ),
            option("--iterations", type=int, default=5000, help="Of all experts together."),
            option(
                "--shared",
                type=float,
                default=0.5,
                help="The share of them in a start that all experts have in common.",
            ),
            option(
                "--chain", is_flag=True, help="Each expert begins as the one before it instead."
            ),
            option("--learn-batch", type=int, default=64, help="Images of an iteration."),
            option(
                "--learning-rate",
                type=float,
                default=5e-3,
                help="Of AdamW, at its highest; for whole networks 0.001 is better.",
            ),
            option("--held-out", type=float, default=0.1, help="Share of images kept to validate."),
            option("--validate-every", type=int, default=100, help="Iterations between looks."),
            option(
                "--patience",
                type=int,
                default=0,
                help="Looks without a new best that end an expert's training; 0 for never.",
            ),
            option(
                "--precision",
                type=click.Choice(["float32", "bfloat16"]),
                default="float32",
                help="Of products.",
            ),
            option("--name", help="Of the file, NAME.experts.safetensors."),
            option(
                "--keep/--no-keep",
                is_flag=True,
                default=True,
                help="Whether `ppap run` shall find the experts by itself.",
            ),
            option(
                "--calibrate/--no-calibrate",
                is_flag=True,
                default=calibrate,
                help="Whether to find the scales with which they shall guide, too.",
            ),
        )
    ):
        command = add(command)
    return command


def recipe_of(given: dict[str, Any]) -> Recipe:
    """The recipe that was asked for; it is checked elsewhere."""
    from ppap_framework.learn import Recipe

    return Recipe(
        iterations=given["iterations"],
        shared=given["shared"],
        chain=given["chain"],
        batch=given["learn_batch"],
        learning_rate=given["learning_rate"],
        held_out=given["held_out"],
        validate_every=given["validate_every"],
        patience=given["patience"],
        precision=given["precision"],
        seed=given["seed"],
    )


def teacher_of(given: dict[str, Any]) -> Teacher:
    """The network that was asked for, loaded.

    Raises:
        PpapError: As `ppap_framework.learn.teacher`.
    """
    from ppap_framework.learn import teacher
    from ppap_framework.run import find_guide

    found = find_guide(given["guider"], loss=given["loss"], model=given["guider_model"])
    return teacher(
        given["guider"],
        loss=given["loss"],
        loss_options=typed_pairs("--loss-option", given["loss_option"], found.loss_name, "loss"),
        model=given["guider_model"],
        checkpoint=given["guider_checkpoint"],
        options=typed_pairs("--guider-option", given["guider_option"], given["guider"], "guider"),
    )


def adapters_of(texts: Sequence[str]) -> Adapters:
    """Adapters as typed, NAME or NAME:KEY=VALUE,KEY=VALUE.

    Raises:
        UsageError: Where a text cannot be read, or an option has another type.
        PluginError: Where no plugin supplies one.
    """
    from ppap_framework.learn import DEFAULT_ADAPTERS
    from ppap_framework.registry import registry

    found: list[tuple[str, dict[str, Any]]] = []
    for text in texts:
        name, options = _adapter(text)
        registry().spec("adapter", name)
        pairs = [part for part in options.split(",") if part]
        found.append((name, typed_pairs("--adapter", pairs, name, "adapter")))
        if [other for other, _ in found].count(name) > 1:
            raise UsageError(f"--adapter {name} is given twice", hint="give each adapter once")
    return found or DEFAULT_ADAPTERS


def _adapter(text: str) -> tuple[str, str]:
    """Name and options; the name may be "distribution:name", in which no "=" stands."""
    name, _, options = text.strip().partition(":")
    own, _, rest = options.partition(":")
    return (f"{name}:{own}", rest) if own and "=" not in own else (name, options)


def boundaries_of(text: str | None) -> Boundaries:
    """Timesteps as typed, or "auto".

    Raises:
        UsageError: Where they are no whole numbers.
    """
    if text is None or text.strip() == "auto":
        return None if text is None else "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--boundaries {text!r} cannot be read",
            hint="type the timesteps at which experts begin, such as 200,400,600,800, or auto",
        ) from error


def bundle_record(bundle: BundleFile) -> dict[str, Any]:
    """What there is to say of trained experts, as JSON."""
    info = bundle.info
    return {
        "name": bundle.name,
        "path": str(bundle.path),
        "experts": len(info),
        "timesteps": list(info.timesteps),
        "parameters_per_expert": list(info.expert_parameters),
        "share_of_network": [n / info.network_parameters for n in info.expert_parameters],
        "metrics": dict(info.metrics),
    }


def show_bundle(bundle: BundleFile) -> None:
    """Print a table of trained experts, then their file."""
    from ppap_framework.cli.output import print_table

    record = bundle_record(bundle)
    scores = record["metrics"]["experts"]

    def shown(score: float | None) -> str:
        return "not finite" if score is None else f"{score:.4g}"

    print_table(
        ("EXPERT", "TIMESTEPS", "HELD-OUT LOSS", "UNTOUCHED", "PARAMETERS"),
        [
            (
                str(i),
                f"{record['timesteps'][i]} to {record['timesteps'][i + 1] - 1}",
                shown(scores[i]["held_out"]),
                shown(scores[i]["untouched"]),
                f"{record['share_of_network'][i]:.2%}",
            )
            for i in range(record["experts"])
        ],
    )
    click.echo(str(bundle.path))


@contextmanager
def progress_bars(state: State) -> Iterator[tuple[Watch | None, Watch | None, Watch | None]]:
    """Bars on stderr where that is a terminal, for drawing, learning and calibrating: each is there
    when the first is heard of it.
    """
    if state.verbosity < 0 or not sys.stderr.isatty():
        yield None, None, None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %{task.fields[more]}"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def watch(what: str, done: int, of: int, more: str = "") -> None:
            if what not in tasks:  # what earlier calls did says nothing about speed
                tasks[what] = bar.add_task(what, completed=done, total=of, more=more)
            bar.update(tasks[what], completed=done, more=more)

        yield (
            lambda drawn: watch("drawing", drawn.steps, drawn.of),
            lambda learned: watch(
                "learning", learned.iterations, learned.of, f", loss {learned.loss:.3g}"
            ),
            lambda calibrated: watch("calibrating", calibrated.trials, calibrated.most),
        )
