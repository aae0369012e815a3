"""`ppap synthesize`, `ppap data`, `ppap transfer` and `ppap adapt`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli import output
from ppap_framework.cli.config import (
    Command,
    backend_options,
    guide_options,
    option,
    options,
    problems_of,
    settings,
)
from ppap_framework.cli.groups import Group
from ppap_framework.errors import AssetError, Problems, UsageError
from ppap_framework.files import expanded

if TYPE_CHECKING:
    from ppap_framework.experts import BundleFile
    from ppap_framework.learn import Adapters, Recipe

_ADAPTER = re.compile(r"([^:]*(?::[^:=]+(?=:|$))?):?(.*)", re.DOTALL)
"""NAME or DISTRIBUTION:NAME, and options behind another colon."""

_STARTS = "the timesteps at which experts begin, such as 200,400,600,800, or auto"
_PART = "2/5 for the second of five parts"

_training_options = options(
    option("--num-experts", type=int, help="Number of experts; by default 5."),
    option(
        "--boundaries",
        metavar="auto|T,T,...",
        help="Timesteps at which all experts but the first begin, by default equally spaced; "
        "auto derives them, and their number, from how answers change with noise.",
    ),
    option(
        "--adapter",
        multiple=True,
        metavar="NAME[:KEY=VALUE,...]",
        help="What an expert is made of, such as lora:rank=16,alpha=8; may be repeated.",
    ),
    option("--through", choices=["noisy", "detached"], default="noisy", help="What experts read."),
    option("--begin-with", metavar="NAME|PATH", help="Experts of this network to begin with."),
    option("--iterations", default=5000, help="Iterations of all experts together."),
    option("--shared", default=0.5, help="Share of them in a start of all experts."),
    option("--chain", is_flag=True, help="Each expert begins as the one before it instead."),
    option("--learn-batch", default=64, help="Images in an iteration."),
    option("--learning-rate", default=5e-3, help="Its peak; 0.001 for whole networks."),
    option("--held-out", default=0.1, help="Share of images kept for validation."),
    option("--validate-every", default=100, help="Iterations between validations."),
    option("--patience", default=0, help="Validations without a new best at most; 0: any."),
    settings("precision", "seed"),
    option(
        "--experts-of", metavar="K/N", help="Train the Kth of N parts; see `ppap experts merge`."
    ),
    option("--name", help="The bundle is called NAME.experts.safetensors."),
    option("--keep/--no-keep", default=True, help="Whether `ppap run` finds the experts."),
    settings("device", "overwrite", "json"),
    option("--calibrate/--no-calibrate", default=True, help="Whether to find the scale curve."),
)


@click.command("synthesize", cls=Command)
@backend_options
@option("--out", required=True, metavar="FOLDER", help="Where to write, or to continue.")
@settings(num=2048)
@option("--prompts", metavar="FILE", help="Prompts, a line for each image, used in turn.")
@settings("eta", "seed", steps=25, sampler="ddim")
@option("--batch", "--block", default=64, help="Images that are drawn at once.")
@option("--shard", default=512, help="Images in a file, a multiple of --batch.")
@settings("device", "workers", "overwrite", threads=1)
@output.json_option
@click.pass_context
def synthesize(ctx: click.Context, /, **given: Any) -> None:
    """Draw the images that experts are trained on, without guides.

    Writes shards in webdataset's format, and manifest.json with hashes; prints the folder. Whatever
    ends it, the same command continues, and the bytes are the same with any number of workers.

    \b
    ppap synthesize --backend adm --num 2048 --out runs/synthetic
    """
    from ppap_framework.cli.guide_options import backend_of, settings_of
    from ppap_framework.data import check_synthesis, synthesize

    problems = problems_of(ctx)
    prompts = problems.attempt(_prompts, given["prompts"], given["num"])
    sampling, compute = settings_of(given, prompt=prompts)
    chosen = {name: given[name] for name in ("num", "shard", "workers")}
    chosen |= {"out": expanded(given["out"] or "."), "sampling": sampling, "compute": compute}
    problems.attempt(check_synthesis, **chosen)
    found = given["backend"] and problems.attempt(backend_of, given)
    problems.check()
    with output.progress(f"the same command continues in {given['out']}") as watch:
        chosen |= {"progress": watch, "command": ["ppap", *sys.argv[1:]]}
        drawn = synthesize(found.load(), **chosen, overwrite=given["overwrite"])
    if given["as_json"]:
        output.print_json({"folder": str(drawn.path), **drawn.manifest})
    else:
        click.echo(drawn.path)


@click.group("data", cls=Group)
def data() -> None:
    """Look at the images that `ppap synthesize` drew."""


@data.command("verify")
@click.argument("folder")
@output.json_option
def verify_data(folder: str, as_json: bool) -> int:
    """Check that nothing is missing or damaged: hashes, counts, and that pictures can be read."""
    from ppap_framework.data import SyntheticData

    drawn = SyntheticData(folder)
    faults = drawn.faults()
    files = list(dict.fromkeys(fault.file for fault in faults))
    if as_json:
        found = {"images": len(drawn), "sha256": drawn.manifest_hash}
        found["faults"] = [fault._asdict() for fault in faults]
        output.print_json({"folder": folder, "whole": not faults, **found})
        return AssetError.exit_code if faults else 0
    if faults:
        more = f", and {len(files) - 1} more files are not right" if len(files) > 1 else ""
        hint = "--json names them all; `ppap synthesize` with the same settings mends them"
        raise AssetError(f"{str(drawn.path / files[0])!r} {faults[0].reason}{more}", hint=hint)
    click.echo(f"{len(drawn)} images in {len(drawn.manifest['shards'])} shards are whole")
    return 0


@data.command("stats")
@click.argument("folder")
@output.json_option
def data_stats(folder: str, as_json: bool) -> None:
    """Show what a set holds, and the mean and standard deviation of its colors."""
    from ppap_framework.data import SyntheticData

    drawn = SyntheticData(folder)
    shards, settings = drawn.manifest["shards"], drawn.manifest["settings"]
    stages = []
    for index, name in enumerate(drawn.stages):
        mean, std = ([round(x, 6) for x in values.tolist()] for values in drawn.moments(index))
        shape = [*drawn.image_shape(index)]
        stages.append({"name": name, "image_shape": shape, "mean": mean, "std": std})
    size = sum(entry["bytes"] for entry in shards)
    found: dict[str, Any] = {"images": len(drawn), "shards": len(shards), "bytes": size}
    found |= {"seconds": drawn.seconds, "sha256": drawn.manifest_hash}
    if as_json:
        output.print_json({"folder": folder, **found, "stages": stages})
    else:
        found |= {"size": output.size_words(size), **settings, "stages": stages}
        output.print_fields(folder, found)


@click.command("transfer", cls=Command)
@backend_options
@guide_options
@option("--data", required=True, metavar="FOLDER|URL", help="What `ppap synthesize` drew.")
@option("--out", required=True, metavar="FOLDER", help="Folder to write to, or to continue in.")
@option("--supervised", is_flag=True, help="--data is an NPZ file of images and labels to learn.")
@_training_options
@click.pass_context
def transfer(ctx: click.Context, /, **given: Any) -> None:
    """Train experts: a network learns to answer to noisy images as it does to clean ones.

    Writes NAME.experts.safetensors, a log, and a plot of the losses. However it ends, the same
    command continues.

    \b
    ppap transfer --backend adm --guider classifier --data runs/synthetic --out runs/experts
    """
    from ppap_framework import learn
    from ppap_framework.data import LabelledImages, SyntheticData

    problems, chosen = _begin(ctx, given)
    problems.attempt(learn.check_transfer, **chosen)
    kind = LabelledImages if given["supervised"] else SyntheticData
    data = problems.attempt(kind, given["data"])
    _train(problems, given, learn.transfer, data=data, **chosen)


@click.command("adapt", cls=Command)
@backend_options
@guide_options
@settings("workers", steps=25, num=2048)
@option("--out", metavar="FOLDER", help="Where; by default runs/adapt/BACKEND-GUIDER-N.")
@_training_options
@click.pass_context
def adapt(ctx: click.Context, /, **given: Any) -> None:
    """Make a network read a diffusion model's noise: synthesize, then transfer.

    No data and no labels are needed. `ppap run` then finds the experts by itself. However it ends,
    the same command continues.

    \b
    ppap adapt --backend adm --guider classifier
    ppap run --backend adm --guider classifier --target "red cube"
    """
    from ppap_framework import learn
    from ppap_framework.run import Sampling

    problems, chosen = _begin(ctx, given)
    chosen["sampling"] = Sampling(steps=given["steps"], sampler="ddim", seed=given["seed"])
    chosen |= {name: given[name] for name in ("num", "workers")}
    problems.attempt(learn.check_adapt, **chosen)
    _train(problems, given, learn.adapt, **chosen)


def _train(
    problems: Problems, given: Mapping[str, Any], learn: Callable[..., BundleFile], **settings: Any
) -> None:
    """Look for further problems, train, and print the experts as JSON or as a table."""
    from ppap_framework.cli.guide_options import backend_of, guide_of
    from ppap_framework.learn import load_teacher

    backend, request = problems.attempt(backend_of, given), problems.attempt(guide_of, given)
    problems.check()
    settings |= {name: given[name] for name in ("keep", "overwrite", "calibrate")}
    with output.progress(f"the same command goes on in {settings['out']}") as watch:
        settings |= {"progress": watch, "command": ["ppap", *sys.argv[1:]]}
        bundle = learn(backend.load(), load_teacher(request), **settings)
    info = bundle.info
    shares = [n / info.network_parameters for n in info.expert_parameters]
    if given["json"]:
        found = {
            "experts": len(info),
            "timesteps": list(info.timesteps),
            "parameters_per_expert": list(info.expert_parameters),
            "share_of_network": shares,
            "metrics": dict(info.metrics),
        }
        output.print_json({"name": bundle.name, "path": str(bundle.path), **found})
        return
    rows = []
    for i, (score, share) in enumerate(zip(info.metrics["experts"], shares, strict=True)):
        if score is None:  # left to another machine
            continue
        losses = (score["held_out"], score["untouched"])
        shown = ["not finite" if loss is None else f"{loss:.4g}" for loss in losses]
        first, stop = info.timesteps[i : i + 2]
        rows.append((i, f"{first} to {stop - 1}", *shown, f"{share:.2%}"))
    output.print_table(("EXPERT", "TIMESTEPS", "HELD-OUT LOSS", "UNTOUCHED", "PARAMETERS"), rows)
    click.echo(bundle.path)


def _prompts(path: str | None, num: int) -> list[str] | None:
    """A prompt for each image: the non-blank lines of a file, in turn."""
    if path is None:
        return None
    hint = "write a text file, a prompt a line"
    try:
        lines = expanded(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise AssetError(f"cannot read the prompts in {path!r}: {reason}", hint=hint) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"there are no prompts in {path!r}", hint=hint)
    return [prompts[image % len(prompts)] for image in range(num)]


def _begin(ctx: click.Context, given: Mapping[str, Any]) -> tuple[Problems, dict[str, Any]]:
    """Problems of a command line, and the settings of its training, not checked."""
    import attrs

    from ppap_framework.learn import Recipe
    from ppap_framework.run import Compute

    problems = problems_of(ctx)
    problems.check()
    values = {name: given[name] for name in attrs.fields_dict(Recipe) if name in given}
    values["batch"] = given["learn_batch"]
    values["adapters"] = problems.attempt(_adapters, given["adapter"])
    starts, part = given["boundaries"], given["experts_of"]
    values["boundaries"] = "auto"
    if starts is None or starts.strip() != "auto":
        values["boundaries"] = problems.attempt(_numbers, "--boundaries", starts, ",", _STARTS)
    values["experts_of"] = problems.attempt(_numbers, "--experts-of", part, "/", _PART)
    recipe, compute = Recipe(**values), Compute(device=given["device"], batch=64)
    out = expanded(given["out"] or _default_out(given, recipe))
    return problems, {"out": out, "recipe": recipe, "compute": compute, "name": given["name"]}


def _adapters(texts: Sequence[str]) -> Adapters:
    """Adapters as typed, NAME or NAME:KEY=VALUE,KEY=VALUE; None for none."""
    from ppap_framework.cli.guide_options import typed_pairs
    from ppap_framework.registry import registry

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        match = _ADAPTER.fullmatch(text.strip())
        name, options = match.groups() if match else (text, "")
        spec = registry().spec("adapter", name)
        kind = name.rpartition(":")[2]
        if kind in found:
            raise UsageError(f"--adapter {kind} is given twice", hint="give each adapter once")
        # Only a comma before KEY= ends a value, which may be a list such as conv1*,layer1*.
        pairs = [pair for pair in re.split(r",+(?=[\w-]+=|$)", options) if pair]
        found[kind] = typed_pairs("--adapter", pairs, name, "adapter")
        registry().options(spec, found[kind])
    return [*found.items()] or None


def _numbers(flag: str, text: str | None, separator: str, advice: str) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(map(int, text.split(separator)))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} cannot be read", hint=f"type {advice}") from error


def _default_out(given: Mapping[str, Any], recipe: Recipe) -> str:
    parts = [Path(given[name].rpartition(":")[2]).name for name in ("backend", "guider")]
    if recipe.boundaries == "auto":
        parts += [str(recipe.num_experts or ""), "auto"]
    else:
        parts.append(str(recipe.num_experts or len(recipe.boundaries or range(4)) + 1))
    parts += ["-of-".join(map(str, recipe.experts_of))] if recipe.experts_of else []
    return f"runs/adapt/{'-'.join(filter(None, parts))}"
